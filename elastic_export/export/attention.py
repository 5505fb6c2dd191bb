"""Self-attention as ONNX Runtime's CPU provider likes it: three projections, one operator.

Exported attention cuts one ``qkv`` product into three by moving it through memory twice, and writes
the attention matrix out. ``MultiHeadAttention`` of ONNX Runtime works in blocks (FlashAttention,
arXiv 2205.14135) on query, key and value as three products leave them. The output channels of an
INT8 weight are independent, so dealing them out to three weights changes no number.

How a network lays out its heads is not guessed from the operators it uses: their effect is computed
on the numbers of the elements (see ``movement``), which gives the channel behind each element.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from elastic_export.export.graph import (
    constant_of,
    insert_before,
    only_consumer,
    read_static_shape,
    replace_node,
)
from elastic_export.export.layers import Layer
from elastic_export.export.movement import follow, trace
from elastic_export.export.projections import product_of_channels, with_bias

__all__ = ["MICROSOFT", "PARTS", "separate_attention"]

MICROSOFT = "com.microsoft"

PARTS = ("q", "k", "v")
"""Suffixes of the three nodes and weights that a ``qkv`` layer becomes."""


@dataclass(frozen=True)
class _Attention:
    """One attention: where it is, and which channel of the projection each head reads.

    ``columns`` holds for query, key and value an int array ``(heads, size)`` of output channels.
    """

    projection: ir.Value
    columns: tuple[NDArray, NDArray, NDArray]
    scale: float
    last: ir.Node


def separate_attention(graph: ir.Graph, layers: list[Layer]) -> list[Layer]:
    """Rewrite every plain self-attention behind a quantized ``qkv`` layer.

    Args:
        graph: A clean FP32 graph with static shapes; changed in place.
        layers: The layers that become INT8.

    Returns:
        The layers, each rewritten ``qkv`` replaced by three whose nodes end in ``.q .k .v``.
    """
    owners = {}
    for layer in layers:
        if layer.entry.op == "MatMul":
            result, bias = with_bias(layer)
            owners[result] = (layer, bias)
    parts: dict[str, list[Layer]] = {}
    for node in list(graph):
        found = _match(node) if node.op_type == "Softmax" else None
        if found is not None and found.projection in owners:
            layer, bias = owners[found.projection]
            parts[layer.name] = _rewrite(graph, found, layer, bias)
    return [part for layer in layers for part in parts.get(layer.name, [layer])]


def _match(softmax: ir.Node) -> _Attention | None:
    """Recognise ``(query * scale) @ key^T -> Softmax -> @ value`` around a Softmax."""
    probabilities = softmax.outputs[0]
    shape = read_static_shape(probabilities)
    mixed = only_consumer(probabilities)
    scores = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    if shape is None or len(shape) != 4 or mixed is None or scores is None:
        return None
    if scores.op_type != "MatMul" or mixed.op_type != "MatMul":
        return None
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    query, scale, scaler = _unscaled(scores.inputs[0])
    if query is None or mixed.inputs[0] is not probabilities:
        return None
    traced = [trace(value) for value in (query, scores.inputs[1], mixed.inputs[1])]
    roots = {item.root for item in traced if item is not None}
    if any(item is None for item in traced) or len(roots) != 1:
        return None
    (root,) = roots
    used = {node for item in traced if item is not None for node in item.nodes}
    inside = used | {scores, mixed, scaler or scores}
    if any(use.node not in inside for value in _outputs(root, used) for use in value.uses()):
        return None
    flat = read_static_shape(root)
    places = [item.places for item in traced if item is not None]
    columns = _columns(flat, places[0], places[1].swapaxes(-1, -2), places[2])
    last = None if columns is None else follow(mixed.outputs[0], (0, 2, 1, 3), 3)
    if columns is None or last is None:
        return None
    return _Attention(root, columns, scale, last)


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float, ir.Node | None]:
    """Return the query without its scale, the scale, and the node that applies it."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Mul":
        return value, 1.0, None
    factor = constant_of(node.inputs[1])
    if factor is None or factor.size != 1:
        return value, 1.0, None
    return node.inputs[0], float(factor.reshape(())), node


def _outputs(root: ir.Value, nodes: set[ir.Node]) -> list[ir.Value]:
    return [root, *(value for node in nodes for value in node.outputs)]


def _columns(
    flat: tuple[int, ...] | None, *places: NDArray
) -> tuple[NDArray, NDArray, NDArray] | None:
    """Read the channel of each head's element, if tokens and images stay where they are.

    Args:
        flat: Shape ``(B, N, channels)`` of the projection.
        *places: For query, key and value, int ``(B, heads, N, size)``: positions in it.
    """
    if flat is None or len(flat) != 3 or any(array.ndim != 4 for array in places):
        return None
    batch, tokens, channels = flat
    found = []
    for array in places:
        columns = array[0, :, 0, :]
        rows = np.arange(batch * tokens).reshape(batch, 1, tokens, 1)
        if array.shape[0] != batch or array.shape[2] != tokens:
            return None
        if not np.array_equal(array, rows * channels + columns[None, :, None, :]):
            return None
        found.append(columns)
    return found[0], found[1], found[2]


def _rewrite(graph: ir.Graph, found: _Attention, layer: Layer, bias: NDArray | None) -> list[Layer]:
    shape = read_static_shape(found.projection)
    assert shape is not None
    parts: list[Layer] = []
    values: list[ir.Value] = []
    for part, columns in zip(PARTS, found.columns, strict=True):
        one, value = product_of_channels(graph, layer, bias, columns.reshape(-1), part)
        parts.append(one)
        values.append(value)
    heads = len(found.columns[0])
    mixed = insert_before(
        found.last,
        "MultiHeadAttention",
        values,
        name=f"{layer.name}.attention",
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape([*shape[:-1], found.columns[2].size]),
        domain=MICROSOFT,
        attributes={"num_heads": heads, "scale": found.scale},
    )
    replace_node(found.last, mixed)
    return parts
