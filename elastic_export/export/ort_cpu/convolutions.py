"""Convolutions and everything between them, in integers.

A ``Conv2d`` becomes Q/DQ on input, weight, INT32 bias and output, from which ONNX Runtime makes
``QLinearConv`` in channels-last layout. Every reader of such a tensor reads it dequantized, so that
residual additions become ``QLinearAdd`` and ReLU is the lower bound of the range. What lies between
two convolutions is computed on codes where that is faster (see ``maps``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from elastic_export.errors import CheckFailed
from elastic_export.export.affine import Affine, affine_of, clipped
from elastic_export.export.graph import add_initializer, constant_of, insert_before, only_consumer
from elastic_export.export.layers import Layer
from elastic_export.export.ort_cpu.codes import Codes
from elastic_export.export.ort_cpu.maps import (
    activated,
    activation_of,
    hard_swish_affine,
    on_codes,
)
from elastic_export.export.saturation import pair_safe_int8

__all__ = ["write_convolutions"]

SAME_CODES = ("MaxPool", "Flatten", "Reshape", "Transpose")
"""Operators whose output holds values of their input, so one scale serves both."""

MAX_BIAS = 2.0**30


def write_convolutions(codes: Codes, convolutions: list[Layer], layers: list[Layer]) -> int:
    """Rewrite every INT8 convolution.

    Args:
        codes: The quantized tensors; those between convolutions are added.
        convolutions: The layers to write.
        layers: These and all other INT8 layers, whose inputs have known ranges.

    Returns:
        How many tensors between convolutions are computed from codes.

    Raises:
        CheckFailed: A convolution's output range is unknown (BatchNorm folded after calibration).
    """
    ranges = _Ranges(codes, convolutions, layers)
    tensors: dict[str | None, ir.Value] = {}
    for layer in convolutions:
        result = _through_relu(layer.node.outputs[0])
        tensors[result.name] = result
        follower = activation_of(result)
        if follower is not None:
            tensors[follower[1].name] = follower[1]
    for layer in convolutions:
        tensors[layer.source.name] = layer.source
    order = {id(node): number for number, node in enumerate(codes.graph)}
    count = 0
    for value in sorted(tensors.values(), key=lambda v: order.get(id(v.producer()), -1)):
        affine = ranges.affine(value)
        count += on_codes(codes, value, affine)
        codes.quantize_for_all(value, affine)
    for layer in convolutions:
        _write(codes, layer)
    return count


class _Ranges:
    """Finds the UINT8 form of a tensor from the sites of the layers around it."""

    def __init__(self, codes: Codes, convolutions: list[Layer], layers: list[Layer]) -> None:
        self.codes = codes
        others = [layer for layer in layers if layer.entry.op != "Conv"]
        self.readers = {layer.source.name: layer for layer in reversed(convolutions + others)}
        self.makers: dict[str | None, Layer] = {}
        self.activations: dict[str | None, tuple[str, Layer, ir.Value]] = {}
        for layer in convolutions:
            result = _through_relu(layer.node.outputs[0])
            self.makers[result.name] = layer
            follower = activation_of(result)
            if follower is not None:
                self.activations[follower[1].name] = (follower[0], layer, result)
        self.swished = {
            result.name for kind, _, result in self.activations.values() if kind == "hard_swish"
        }

    def affine(self, value: ir.Value) -> Affine:
        name, producer = value.name, value.producer()
        if producer is not None and producer.op_type in SAME_CODES:
            known = self.codes.known(producer.inputs[0])
            if known is not None:
                return known.affine
        reader, maker = self.readers.get(name), self.makers.get(name)
        activation = self.activations.get(name)
        if reader is not None:
            return affine_of(reader.input)
        if maker is not None and not maker.entry.folded:
            low, high = _relu_bounds(maker.node.outputs[0])
            site = clipped(maker.output, low, high)
            return hard_swish_affine(site.max) if name in self.swished else affine_of(site)
        if activation is not None and not activation[1].entry.folded:
            kind, layer, _ = activation
            low, high = activated(kind, layer.output.min, layer.output.max)
            return affine_of(replace(layer.output, min=low, max=high))
        owner = maker or (activation[1] if activation is not None else None)
        raise CheckFailed(
            f'The range of the output of the layer "{owner.name if owner else name}" is unknown, '
            "because its BatchNorm was folded after calibration.",
            "Fold BatchNorm before calibrating.",
        )


def _write(codes: Codes, layer: Layer) -> None:
    node, entry = layer.node, layer.entry
    source = codes.known(layer.source)
    assert source is not None
    scale_in = source.affine.scale
    weight = layer.weight
    # The kernels sum over kernel positions first and channels last (channels-last layout).
    rows = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    integers, scale = pair_safe_int8(rows, layer.amax)
    if bias is not None:
        # A channel of tiny weights and a large bias: keep the bias inside INT32.
        least = np.abs(bias).astype(np.float64) / (MAX_BIAS * float(scale_in))
        wide = scale.astype(np.float64) < least
        if wide.any():
            scale = np.where(wide, least, scale).astype(np.float32)
            integers = np.rint(rows / scale[:, None]).clip(-127, 127).astype(np.int8)
    n, c, kh, kw = weight.shape
    kernel = integers.reshape(n, kh, kw, c).transpose(0, 3, 1, 2)
    node.replace_input_with(1, _dequantized(codes.graph, node, entry.initializer, kernel, scale))
    if bias is not None:
        product = (scale * scale_in).astype(np.float32)
        levels = np.rint(bias.astype(np.float64) / product.astype(np.float64)).astype(np.int32)
        name = f"{layer.name}.bias.int32"
        node.replace_input_with(2, _dequantized(codes.graph, node, name, levels, product))


def _dequantized(
    graph: ir.Graph, anchor: ir.Node, name: str, codes: np.ndarray, scale: np.ndarray
) -> ir.Value:
    graph.initializers.pop(name, None)
    stored = add_initializer(graph, name, codes)
    scales = add_initializer(graph, f"{name}.scale", scale)
    return insert_before(
        anchor,
        "DequantizeLinear",
        [stored, scales],
        name=f"{name}.dq",
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(codes.shape),
        attributes={"axis": 0},
    )


def _through_relu(value: ir.Value) -> ir.Value:
    """Return the output of the ReLU or Clip that alone reads the value, else the value."""
    node = only_consumer(value)
    return node.outputs[0] if node is not None and node.op_type in ("Relu", "Clip") else value


def _relu_bounds(value: ir.Value) -> tuple[float, float]:
    node = only_consumer(value)
    if node is None or node.op_type not in ("Relu", "Clip"):
        return -np.inf, np.inf
    if node.op_type == "Relu":
        return 0.0, np.inf
    bounds = [constant_of(bound) for bound in node.inputs[1:]]
    low = -np.inf if not bounds or bounds[0] is None else float(bounds[0])
    high = np.inf if len(bounds) < 2 or bounds[1] is None else float(bounds[1])
    return low, high
