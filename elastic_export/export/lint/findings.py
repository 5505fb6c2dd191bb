"""What a look at a file can find: what its runtime does not take, or runs slower."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import onnx_ir as ir

from elastic_export.config.target import Software, Target
from elastic_export.export.parsers import Parser

__all__ = ["Context", "Finding", "Rule", "Severity"]

Severity = Literal["refused", "slower", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing in a file that its target does not take, or takes at a price.

    Attributes:
        op: The operator, or what else it is about: ``opset``, ``initializer``, ``input``.
        node: The node or value; empty where it is the whole file.
        target: For whom.
        problem: What is wrong, as a sentence.
        remedy: What to do, as a sentence.
        severity: ``refused`` (the build fails or the numbers are wrong), ``slower`` or ``note``.
        source: Where the rule is from.
    """

    op: str
    node: str
    target: str
    problem: str
    remedy: str
    severity: Severity
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Context:
    """A file and who is to read it.

    Attributes:
        model: The file.
        parser: The facts of the runtime's release.
        software: The software of the target.
        target: Its name.
        device: Its profile; None where only the software is known.
    """

    model: ir.Model
    parser: Parser
    software: Software
    target: str
    device: Target | None

    @property
    def nodes(self) -> Iterator[ir.Node]:
        """All nodes, those of subgraphs too."""
        return iter(self.model.graph.all_nodes())

    @property
    def export_instead(self) -> str:
        """The remedy for a file in another runtime's flavour: let this tool write it."""
        command = f"elastic-export export DESCENDANT --target {self.target} --data DATA"
        return f"Export the network for this target, which takes its own flavour: {command}."

    def holds(self, fact: str) -> bool:
        """Tell whether a rule of the parser holds."""
        return self.parser.fact(fact) is not None

    def finding(
        self,
        at: ir.Node | tuple[str, str],
        problem: str,
        remedy: str,
        severity: Severity = "refused",
        *,
        fact: str = "",
        source: str = "",
    ) -> Finding:
        """Make a finding; one that rests on an unverified fact is a note."""
        rule = self.parser.fact(fact) if fact else None
        if rule is not None and not rule.verified:
            severity = "note"
            problem += " This was not tried on that release."
        op, name = (at.op_type, at.name or "") if isinstance(at, ir.Node) else at
        source = rule.source if rule is not None else source
        return Finding(op, name, self.target, problem, remedy, severity, source)


Rule = Callable[[Context], Iterator[Finding]]
