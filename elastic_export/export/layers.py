"""The record joined with the graph: nodes, weights and sites of layers and attentions, checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from elastic_export.errors import CheckFailed, UserError
from elastic_export.export.graph import constant_of, nodes_by_name
from elastic_export.export.table import AttentionEntry, ExportTable, TableEntry
from elastic_export.quantize.record import PRODUCT_ROLES, QuantizationRecord, Role, Site

__all__ = ["Attention", "Layer", "join", "join_attentions"]


@dataclass(frozen=True)
class Layer:
    """One ``Linear`` or ``Conv2d`` of the exported graph.

    Args:
        entry: Where its weight is.
        node: The node that reads the weight.
        weight: The float32 weight as the graph stores it.
        input: Site of its input.
        output: Site of its output.
        amax: float32 ``(out,)``, the symmetric limit of each output channel of the weight.
        reason: Why it stays in floating point; empty if it becomes INT8.
        skip: Site of what a residual addition adds to its output, where it may be INT8.
    """

    entry: TableEntry
    node: ir.Node
    weight: NDArray[np.float32]
    input: Site
    output: Site
    amax: NDArray[np.float32]
    reason: str
    skip: Site | None = None

    @property
    def name(self) -> str:
        """The module name."""
        return self.entry.module

    @property
    def is_int8(self) -> bool:
        """Whether the record wants it in INT8."""
        return not self.reason

    @property
    def source_index(self) -> int:
        """Which input of the node the data is."""
        return 0 if self.entry.op == "Conv" else 1 - self.entry.input_index

    @property
    def source(self) -> ir.Value:
        """The value that flows into the layer."""
        value = self.node.inputs[self.source_index]
        assert value is not None
        return value


@dataclass(frozen=True)
class Attention:
    """One attention that becomes INT8.

    Args:
        entry: Where its products are.
        first: The node ``query @ key``.
        second: The node ``probs @ value``.
        sites: Its four operands by role; query and key before their scale.
    """

    entry: AttentionEntry
    first: ir.Node
    second: ir.Node
    sites: dict[Role, Site]


def join(graph: ir.Graph, table: ExportTable, record: QuantizationRecord) -> list[Layer]:
    """Match every entry of the table with its node and its sites.

    Raises:
        UserError: The record was taken from another model, or misses a layer.
        CheckFailed: The table does not belong to the graph, or a range is unusable.
    """
    if table.model_digest and record.model_digest and table.model_digest != record.model_digest:
        raise UserError(
            "The quantization record was calibrated on other weights than the ONNX file holds.",
            "Calibrate the module that was exported, or export the module that was calibrated.",
        )
    unknown = [name for name in record.modules() if f"{name}.weight" not in table.entries]
    if unknown:
        raise UserError(
            f'The quantization record names the layer "{unknown[0]}", which the ONNX file does '
            "not have.",
            "Use the record of this module.",
        )
    nodes = nodes_by_name(graph)
    return [_layer(graph, nodes, entry, record) for entry in table.entries.values()]


def join_attentions(
    graph: ir.Graph, table: ExportTable, record: QuantizationRecord
) -> list[Attention]:
    """Match the attentions that the record has in INT8 with their nodes.

    Raises:
        CheckFailed: An attention of the record is not in the graph, or a range is unusable.
    """
    nodes = nodes_by_name(graph)
    wanted = record.int8_attentions()
    found = []
    for entry in table.attentions:
        if entry.module not in wanted:
            continue
        first, second = nodes.get(entry.first), nodes.get(entry.second)
        if first is None or second is None or {first.op_type, second.op_type} != {"MatMul"}:
            raise CheckFailed(
                f'The export table says "{entry.first}" and "{entry.second}" are the products of '
                f'the attention "{entry.module}", but the ONNX file has no such nodes.',
                "Export the module again and keep the ONNX file and its table together.",
            )
        sites = {role: record.site(entry.module, role) for role in PRODUCT_ROLES}
        for site in sites.values():
            _check_range(site)
        found.append(Attention(entry, first, second, sites))
    missing = sorted(set(wanted) - {attention.entry.module for attention in found})
    if missing:
        raise CheckFailed(
            f'The record holds ranges for the attention "{missing[0]}", and no attention of the '
            "ONNX file could be traced to that module.",
            "Leave the attention products in floating point (attention: float).",
        )
    return found


def _layer(
    graph: ir.Graph, nodes: dict[str, ir.Node], entry: TableEntry, record: QuantizationRecord
) -> Layer:
    node, value = nodes.get(entry.node), graph.initializers.get(entry.initializer)
    weight = constant_of(value)
    if node is None or node.op_type != entry.op or weight is None:
        raise CheckFailed(
            f'The export table says "{entry.parameter}" feeds the {entry.op} node "{entry.node}", '
            "but the ONNX file has no such node or weight.",
            "Export the module again and keep the ONNX file and its table together.",
        )
    sites = {role: record.sites.get((entry.module, role)) for role in ("input", "weight", "output")}
    missing = [role for role, site in sites.items() if site is None]
    if missing:
        raise UserError(
            f'The quantization record has no {missing[0]} site for the layer "{entry.module}".',
            "Calibrate the module that was exported.",
        )
    wanted, weights, produced = sites["input"], sites["weight"], sites["output"]
    assert wanted is not None
    assert weights is not None
    assert produced is not None
    reason = wanted.reason or weights.reason
    amax = np.zeros(weight.shape[entry.output_axis], np.float32)
    if wanted.policy == weights.policy == "int8":
        for site in (wanted, weights, produced):
            _check_range(site)
        amax = _weight_amax(entry, weight, weights)
    elif not reason:
        reason = "The record keeps it in floating point."
    skip = record.sites.get((entry.module, "skip"))
    if skip is not None and skip.policy == "float":
        skip = None
    if skip is not None and not reason:
        _check_range(skip)
    return Layer(entry, node, weight.astype(np.float32), wanted, produced, amax, reason, skip)


def _check_range(site: Site) -> None:
    finite = np.isfinite(site.amax).all() and np.isfinite([site.min, site.max]).all()
    if not finite or not (site.amax > 0).any() or (site.amax < 0).any() or site.min > site.max:
        raise CheckFailed(
            f'The {site.role} of the layer "{site.module}" has an unusable range: '
            f"min {site.min:g}, max {site.max:g}, largest magnitude {float(np.max(site.amax)):g}.",
            "Calibrate again with images on which the layer is active, or leave it in floating "
            "point.",
        )


def _weight_amax(entry: TableEntry, weight: NDArray, site: Site) -> NDArray[np.float32]:
    """Return the limit per output channel, of the weight that is deployed."""
    channels = weight.shape[entry.output_axis]
    if site.amax.shape not in ((), (channels,)):
        raise UserError(
            f'The record gives {site.amax.size} weight ranges for the layer "{entry.module}", '
            f"which has {channels} output channels.",
            "Use the record of this module.",
        )
    if not entry.folded:
        return np.broadcast_to(site.amax, (channels,)).astype(np.float32)
    # A folded BatchNorm rescaled the channels after calibration, so the record's limits are void.
    others = tuple(axis for axis in range(weight.ndim) if axis != entry.output_axis)
    return np.abs(weight).max(axis=others).astype(np.float32)
