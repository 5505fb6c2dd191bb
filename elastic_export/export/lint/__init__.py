"""Hold a file against what its target's parser takes, before anybody carries it to the device.

The facts are data with their sources (``parsers``), the rules are functions (``operators``,
``graph``, ``quantization``). A parser that is at hand says more (the compile stage asks that of
TensorRT-RTX); this asks those that are not.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from elastic_export.config.target import Software, Target
from elastic_export.errors import CheckFailed
from elastic_export.export.files import load_model
from elastic_export.export.lint.findings import Context, Finding
from elastic_export.export.lint.graph import GRAPH_RULES
from elastic_export.export.lint.operators import OPERATOR_RULES
from elastic_export.export.lint.quantization import QUANTIZATION_RULES
from elastic_export.export.parsers import parser_of

__all__ = ["Finding", "check_lint", "lint"]

_ORDER = ("refused", "slower", "note")


def lint(
    path: Path, software: Software, *, target: str, device: Target | None = None
) -> list[Finding]:
    """Find what a target's runtime refuses in a file, or what costs time there.

    Args:
        path: An ONNX file.
        software: The runtime and its version.
        target: Its name, for the findings: ``orin-nano-8gb@jp5.1``.
        device: The target's profile; without it nothing is said of INT8 and 2:4 on the device.

    Returns:
        The refused first, then what is slower, then notes; each in the order of the graph.

    Raises:
        UserError: The file cannot be read, or nothing is known of the runtime's release.
    """
    parser = parser_of(software.runtime, software.runtime_version)
    context = Context(load_model(path), parser, software, target, device)
    rules = (*OPERATOR_RULES, *GRAPH_RULES, *QUANTIZATION_RULES)
    found = [finding for rule in rules for finding in rule(context)]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def check_lint(
    path: Path,
    software: Software,
    *,
    target: str,
    device: Target | None = None,
    allowed: Collection[str] = ("slower", "note"),
) -> list[Finding]:
    """Refuse a file that its target refuses.

    Args:
        path: See `lint`, as are the others.
        software: The runtime and its version.
        target: Its name.
        device: The target's profile.
        allowed: Severities that are returned instead of raised.

    Returns:
        The findings that do not stop anything.

    Raises:
        CheckFailed: Naming the first finding and counting the rest.
        UserError: As `lint`.
    """
    found = lint(path, software, target=target, device=device)
    bad = [finding for finding in found if finding.severity not in allowed]
    if bad:
        first, rest = bad[0], len(bad) - 1
        more = f" ({rest} more like it or worse)" if rest else ""
        where = f'the {first.op} "{first.node}"' if first.node else f"the {first.op}"
        raise CheckFailed(
            f"{Path(path).name} is not for {target}: {where}: {first.problem}{more}", first.remedy
        )
    return found
