"""What ``inspect --target`` found, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_export.cli.tables import table, titled
from elastic_export.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from elastic_export.export.lint import Finding

__all__ = ["Linted", "linted"]

_SEVERITIES = ("refused", "slower", "note")


@dataclass(frozen=True)
class Linted:
    """A file, a target and what the one finds in the other."""

    path: Path
    target: str
    runtime: str
    findings: Sequence[Finding]

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each severity."""
        found: list[str] = [finding.severity for finding in self.findings]
        return {severity: found.count(severity) for severity in _SEVERITIES}

    @property
    def refused(self) -> bool:
        """Tell whether the target's runtime refuses the file."""
        return self.counts["refused"] > 0

    @property
    def verdict(self) -> str:
        """One line: taken or refused, and how much was found."""
        said = ", ".join(f"{name}: {count}" for name, count in self.counts.items() if count)
        return f"{'refused' if self.refused else 'taken'}{f' ({said})' if said else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "kind": "lint",
            "path": str(self.path),
            "target": self.target,
            "runtime": self.runtime,
            "taken": not self.refused,
            "counts": self.counts,
            "findings": [finding.to_json() for finding in self.findings],
        }

    def table(self) -> RenderableType:
        """Lay out one row for each kind of finding, with its first node and how many there are."""
        title = f"{self.path} on {self.target} ({self.runtime}): {self.verdict}"
        rows = list(self._rows())
        headers = ("severity", "operator", "node", "problem", "remedy")
        return titled(title, table(headers, rows)) if rows else title

    def _rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        kinds: dict[tuple[str, str, str, str], list[str]] = {}
        for f in self.findings:
            kinds.setdefault((f.severity, f.op, f.problem, f.remedy), []).append(f.node)
        for (severity, op, problem, remedy), nodes in kinds.items():
            more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
            yield severity, op, (nodes[0] or "-") + more, problem, remedy


def linted(path: Path, target: str) -> Linted:
    """Hold an ONNX file against a target.

    Raises:
        UserError: The target is unknown, or the file cannot be read or is no ONNX file.
    """
    from elastic_export.config.targets import load_target
    from elastic_export.export.lint import lint

    resolved = load_target(target)
    if path.is_dir() or path.suffix != ".onnx":
        raise UserError(
            f"{path} is no ONNX file, and only those are held against a target.",
            "Give a file that ends in .onnx, such as one in a bundle folder.",
        )
    software, name = resolved.software, resolved.identity
    found = lint(path, software, target=name, device=resolved.target)
    return Linted(path, name, f"{software.runtime} {software.runtime_version}", found)
