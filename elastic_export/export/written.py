"""Where a layer is in a file of any flavour: its nodes, its stored weight and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from elastic_export.errors import CheckFailed
from elastic_export.export.attention import PARTS
from elastic_export.export.graph import constant_of, only_consumer
from elastic_export.export.movement import trace
from elastic_export.export.table import TableEntry

__all__ = [
    "Reading",
    "bias_of",
    "is_quantized",
    "nodes_of",
    "reading_of",
    "result_of",
    "rows_of",
    "stored_weight",
]

ON_THE_WAY = ("DequantizeLinear", "QuantizeLinear", "Cast", "Transpose")
"""Operators between a stored weight and its node; all but the last keep its shape."""


def nodes_of(nodes: Mapping[str, ir.Node], entry: TableEntry) -> list[ir.Node]:
    """Return the node of a layer, or the nodes its output channels were dealt out to.

    Args:
        nodes: The nodes of the file by name.
        entry: The layer in the export table of the FP32 file.

    Raises:
        CheckFailed: The file has none.
    """
    own = nodes.get(entry.node)
    if own is not None:
        return [own]
    prefix = f"{entry.node}."
    parts = [
        node
        for name, node in nodes.items()
        if name.startswith(prefix) and _is_part(name.removeprefix(prefix))
    ]
    if not parts:
        raise CheckFailed(
            f'The file has no node for the layer "{entry.module}".',
            "Use the export table of the file this one was made from.",
        )
    return parts


def _is_part(suffix: str) -> bool:
    return suffix in PARTS or suffix.isdigit()


def stored_weight(node: ir.Node, entry: TableEntry) -> NDArray:
    """Return the weight of a node as the file stores it (integers where it is INT8).

    Output channels come first and the axis that the node sums over last: ``(out, k, k, in)`` for
    Conv, ``(out, in)`` for MatMul and Gemm.

    Raises:
        CheckFailed: It is no constant.
    """
    weight = None
    for value in node.inputs[1:]:
        weight = _stored(value)
        if weight is not None and weight.ndim >= 2:
            break
    if weight is None or weight.ndim < 2:
        raise CheckFailed(
            f'The weight of the layer "{entry.module}" is not stored as a constant.',
            "Export the extracted module, whose weights are initializers.",
        )
    if node.op_type == "Conv":
        return np.moveaxis(weight, 1, -1)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0):
        return weight
    return np.moveaxis(weight, -2, -1)


def _stored(value: ir.Value | None) -> NDArray | None:
    """Return the constant behind a value, turned the way the node sees it."""
    array = constant_of(value)
    if array is not None or value is None:
        return array
    node = value.producer()
    if node is None or node.op_type not in ON_THE_WAY:
        return None
    inner = _stored(node.inputs[0])
    if inner is None or node.op_type != "Transpose":
        return inner
    order = node.attributes.get("perm")
    return inner.transpose(order.as_ints() if order is not None else None)


def is_quantized(node: ir.Node) -> bool:
    """Tell whether a node multiplies by an INT8 weight."""
    return any(
        value is not None
        and (array := _stored(value)) is not None
        and array.ndim >= 2
        # TensorRT 8 takes INT8 weights in floating point, behind a Q/DQ pair.
        and (array.dtype == np.int8 or _is_dequantized(value))
        for value in node.inputs[1:]
    )


def _is_dequantized(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def result_of(node: ir.Node) -> ir.Value:
    """Return the result of a layer's node, with its bias where that is an addition of its own."""
    return _with_bias(node)[0]


def bias_of(node: ir.Node) -> NDArray | None:
    """Return the bias of a linear layer's node, ``(out,)``, or None where it has none."""
    if node.op_type == "MatMulIntegerToFloat":
        return constant_of(node.inputs[6]) if len(node.inputs) > 6 else None
    return _with_bias(node)[1]


def _with_bias(node: ir.Node) -> tuple[ir.Value, NDArray | None]:
    result = node.outputs[0]
    follower = only_consumer(result) if node.op_type == "MatMul" else None
    if follower is not None and follower.op_type == "Add":
        other = follower.inputs[1] if follower.inputs[0] is result else follower.inputs[0]
        bias = constant_of(other)
        if bias is not None and bias.ndim == 1:
            return follower.outputs[0], bias
    return result, None


def rows_of(graph: ir.Graph, node: ir.Node) -> NDArray[np.int64] | None:
    """Return which row of the layer's result each row of a node's result is, None if each its own.

    ``ort-cpu`` moves whole tokens in front of a product instead of behind it (see
    ``ort_cpu.rows.move_back``); the order is that of the Gather it adds.
    """
    order = constant_of(graph.initializers.get(f"{node.name}.moved.order"))
    return None if order is None else order.astype(np.int64)


@dataclass(frozen=True)
class Reading:
    """What a layer's node reads, as a value of the file that is in floating point.

    Args:
        value: Name of that value: in front of the node's quantization where it has one.
        places: int64, in the shape in which the node sees the value: positions in the flattened
            value, where operators that only move values lie between. None where none do.
        scale: float32 scale of the integers, where the value holds integers that other integers
            were computed to. None otherwise.
        zero_point: The integer that stands for zero.
    """

    value: str
    places: NDArray[np.int64] | None = None
    scale: NDArray | None = None
    zero_point: int = 0

    def real(self, array: NDArray) -> NDArray[np.float32]:
        """Return float32 in the shape in which the node sees the value, from the value's array."""
        if self.scale is not None:
            array = (array.astype(np.float32) - self.zero_point) * self.scale
        if self.places is not None:
            array = array.reshape(-1)[self.places]
        return array.astype(np.float32)


def reading_of(node: ir.Node, entry: TableEntry) -> Reading:
    """Tell what a layer's node reads, before the rounding that belongs to the layer."""
    value = node.inputs[_data_index(node, entry)]
    assert value is not None
    producer = value.producer()
    dequantizer = (
        producer if producer is not None and producer.op_type == "DequantizeLinear" else None
    )
    codes = value if dequantizer is None else dequantizer.inputs[0]
    explained = trace(codes)
    if explained is not None and (quantizer := explained.root.producer()) is not None:
        source = quantizer.inputs[0] if quantizer.op_type == "QuantizeLinear" else None
        if source is not None:
            before = source.producer()
            if before is not None and before.op_type == "SpaceToDepth" and not explained.nodes:
                source = before.inputs[0]
            places = explained.places if explained.nodes else None
            return Reading(str(source.name if source is not None else ""), places)
    if node.op_type == "MatMulIntegerToFloat":
        scale, zero = constant_of(node.inputs[2]), constant_of(node.inputs[4])
        assert scale is not None
        return Reading(str(value.name), scale=scale, zero_point=0 if zero is None else int(zero))
    return Reading(str(value.name))


def _data_index(node: ir.Node, entry: TableEntry) -> int:
    if node.op_type == "Conv" or node.op_type == "MatMulIntegerToFloat":
        return 0
    return 1 - entry.input_index
