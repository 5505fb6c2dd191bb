"""Find the constant behind a node's input, and the axis the node sums over."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from elastic_export.export.graph import constant_of

__all__ = ["constant_behind", "sums_over"]

_THROUGH = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear")


def constant_behind(value: ir.Value | None) -> NDArray | None:
    """Return the array that a value is made of through Q, DQ, Cast and Transpose, else None.

    Codes stay codes: what is returned has the shape of the value and zeros where it has zeros.
    """
    orders: list[tuple[int, ...]] = []
    while value is not None:
        array = constant_of(value)
        if array is not None:
            for order in reversed(orders):
                array = np.transpose(array, order)
            return array
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "Transpose":
            rank = len(value.shape or ())
            order = node.attributes.get_ints("perm", list(range(rank))[::-1])
            orders.append(tuple(order))
        elif node.op_type not in _THROUGH:
            return None
        value = node.inputs[0]
    return None


def sums_over(node: ir.Node) -> int | None:
    """The axis of input 1 that Conv, Gemm or MatMul sums over; None for other operators.

    The axes are those of NVIDIA/TensorRT samples/common/sampleUtils.cpp, which looks for 2:4 there.
    """
    if node.op_type == "Conv":
        return 1
    if node.op_type == "Gemm":
        return 1 if node.attributes.get_int("transB", 0) else 0
    return -2 if node.op_type == "MatMul" else None
