"""The export table: which ONNX initializer and node a parameter of the module became."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from elastic_export.errors import UserError
from elastic_export.export.files import write_atomically

__all__ = ["AttentionEntry", "ExportTable", "Exported", "TableEntry"]

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class TableEntry:
    """Where the weight of one ``Linear`` or ``Conv2d`` went.

    Args:
        parameter: Dotted name in the state dict, for example ``blocks.0.attn.qkv.weight``.
        initializer: Name of the tensor in the ONNX graph.
        node: Name of the node that reads it; the emitters keep this name in every flavour.
        op: ``Conv``, ``MatMul`` or ``Gemm``.
        input_index: Which input of the node it is.
        output_axis: Axis of the initializer that runs over output channels.
        reduction_axis: Axis of the initializer that is summed over, per kernel position for Conv.
        transposed: The initializer is the transpose of the parameter.
        folded: The values differ from the parameter's, because a BatchNorm was folded in.
    """

    parameter: str
    initializer: str
    node: str
    op: str
    input_index: int
    output_axis: int
    reduction_axis: int
    transposed: bool
    folded: bool

    @property
    def module(self) -> str:
        """Dotted name of the layer that owns the parameter."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class AttentionEntry:
    """Where the two products of one attention went.

    Args:
        module: Dotted name of the module that computes them, for example ``blocks.0.attn``.
        first: Name of the node ``query @ key``.
        softmax: Name of the Softmax.
        second: Name of the node ``probs @ value``.
    """

    module: str
    first: str
    softmax: str
    second: str


@dataclass(frozen=True)
class ExportTable:
    """One entry per ``Linear`` and ``Conv2d``, by parameter name, in the order of the module.

    Args:
        entries: Parameter name to entry.
        model_digest: Digest of the exported module, the same that a quantization record carries.
        attentions: One entry per attention, in the order of the graph.
    """

    entries: Mapping[str, TableEntry] = field(default_factory=dict)
    model_digest: str = ""
    attentions: tuple[AttentionEntry, ...] = ()

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        state = {
            "schema_version": SCHEMA_VERSION,
            "model_digest": self.model_digest,
            "entries": [asdict(entry) for entry in self.entries.values()],
            "attentions": [asdict(entry) for entry in self.attentions],
        }
        write_atomically(path, json.dumps(state, indent=1).encode())

    @staticmethod
    def load(path: Path) -> ExportTable:
        """Read a table that ``save`` wrote.

        Raises:
            UserError: The file is missing, truncated or of another kind.
        """
        try:
            state = json.loads(Path(path).read_text())
            if state["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {state['schema_version']}")
            entries = [TableEntry(**entry) for entry in state["entries"]]
            attentions = tuple(AttentionEntry(**entry) for entry in state["attentions"])
            by_name = {entry.parameter: entry for entry in entries}
            return ExportTable(by_name, str(state["model_digest"]), attentions)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"The export table {path} cannot be read ({type(error).__name__}).",
                "Export the module again; the table is written beside the ONNX file.",
            ) from error


@dataclass(frozen=True)
class Exported:
    """What ``export_fp32`` wrote.

    Args:
        path: The ONNX file.
        table: Where each weight is in it.
        opset: Its opset of the default domain.
    """

    path: Path
    table: ExportTable
    opset: int
