"""The matrix product inside a node: its size, and what may be done to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from elastic_export.config.fused_layer import Kind
from elastic_export.export.graph import constant_of, read_static_shape

__all__ = ["Work", "work_of"]

NARROW = 16
"""Below so many input or output channels INT8 is left out (see ``quantize/placement.yaml``)."""


@dataclass(frozen=True)
class Work:
    """What a kernel multiplies; the fields are those of ``FusedLayer``."""

    kind: Kind
    macs: int = 0
    m: int = 0
    n: int = 0
    k: int = 0
    groups: int = 1
    int8: bool = False
    eligible_2_4: bool = False
    sparse: bool = False


def work_of(node: ir.Node, is_known: Callable[[ir.Value], bool], images: int) -> Work:
    """Measure a Conv, ConvTranspose, MatMul or Gemm whose shapes are static.

    Args:
        node: The node.
        is_known: Whether a value is constant.
        images: The batch size, to tell how many positions an image has.
    """
    if node.op_type in ("Conv", "ConvTranspose"):
        return _convolution(node, images)
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None
    assert right is not None
    a, b, out = _shape(left), _shape(right), _shape(node.outputs[0])
    if node.op_type == "Gemm":
        a = a[::-1] if node.attributes.get_int("transA", 0) else a
        b = b[::-1] if node.attributes.get_int("transB", 0) else b
    k = a[-1]
    if not is_known(left) and not is_known(right):
        groups, n = math.prod(out[:-2]), b[-1] if len(b) > 1 else 1
        m = out[-2] if len(out) > 1 else 1
        return Work("product", groups * m * n * k, m, n, k, groups)
    if is_known(left):  # a constant on the left mixes rows: its rows are the columns of the product
        n, rows, weight = a[-2], math.prod(out) // a[-2], None
        groups = 1
    else:
        n, groups = b[-1], math.prod(b[:-2])
        rows = math.prod(out) // n // groups
        array = constant_of(right)
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
        weight = None if array is None or array.ndim != 2 else array.T if transposed else array
    wide = min(k, n) >= NARROW and rows // images > 1 and groups == 1
    eligible = k % 4 == 0 and weight is not None
    sparse = eligible and weight is not None and _is_2_4(weight.T)
    return Work("gemm", groups * rows * n * k, rows, n, k, groups, wide, eligible, sparse)


def _convolution(node: ir.Node, images: int) -> Work:
    weight = node.inputs[1]
    assert weight is not None
    assert node.inputs[0] is not None
    groups = node.attributes.get_int("group", 1)
    kernel, out, into = _shape(weight), _shape(node.outputs[0]), _shape(node.inputs[0])
    if node.op_type == "ConvTranspose":
        positions, channels = math.prod(into[2:]) * into[0], into[1] // groups
        n = kernel[1] * math.prod(kernel[2:])
        macs = groups * positions * n * channels
        return Work("conv", macs, positions, n, channels, groups)
    positions, n = math.prod(out[2:]) * out[0], kernel[0] // groups
    k = math.prod(kernel[1:])
    wide = groups == 1 and min(kernel[1], n) >= NARROW and positions // images > 1
    eligible = groups == 1 and kernel[1] % 4 == 0
    array = constant_of(weight) if eligible else None
    sparse = array is not None and _is_2_4(np.moveaxis(array, 1, -1))
    macs = groups * positions * n * k
    return Work("conv", macs, positions, n, k, groups, wide, eligible, sparse)


def _is_2_4(weight: NDArray[Any]) -> bool:
    """Tell whether no four neighbours on the last axis hold more than two values."""
    return bool((np.count_nonzero(weight.reshape(-1, 4), axis=1) <= 2).all())


def _shape(value: ir.Value) -> tuple[int, ...]:
    shape = read_static_shape(value)
    assert shape is not None, value.name
    return shape
