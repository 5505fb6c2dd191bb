"""Symmetric Q/DQ for TensorRT, in FP16 or FP32.

What NVIDIA's parser takes (tried with TensorRT-RTX 1.7.1): zero points of 0, INT8 weights behind a
DequantizeLinear, no INT32 bias, no integer operators. Placement follows NVIDIA's ModelOpt: Q/DQ on
the inputs of quantized Conv, MatMul and Gemm only, shared by all readers of a tensor, and on the
skip input of a residual addition, so that the convolution before it fuses with the addition. The
range of a skip input is the record's ``skip`` of the convolution it is added to.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike

from elastic_export.export.graph import (
    add_initializer,
    insert_after,
    insert_before,
    is_weightlike,
    only_consumer,
    value_shape,
)
from elastic_export.export.layers import Layer
from elastic_export.quantize.record import Site, quantize_int8

__all__ = ["quantize_dequantize", "write_symmetric"]

ZERO = "zero_point.int8"


def write_symmetric(model: ir.Model, layers: list[Layer], dtype: DTypeLike) -> list[str]:
    """Rewrite a clean model in place.

    Args:
        model: In the precision that ``dtype`` names.
        layers: What ``join`` found in it.
        dtype: Type of the scales, and of what is not quantized: float16 or float32.

    Returns:
        One sentence for each rewrite beyond quantization.
    """
    graph = model.graph
    chosen = [layer for layer in layers if layer.is_int8]
    inputs = [(layer, layer.source) for layer in chosen]
    skips = _skip_inputs(graph, layers)
    done: dict[str | None, ir.Value] = {}
    for layer, value in inputs:
        _write_weight(graph, layer, dtype)
        if value.name not in done:
            done[value.name] = quantize_dequantize(graph, value, layer.input, dtype)
        layer.node.replace_input_with(layer.source_index, done[value.name])
    for addition, index, value, site in skips:
        if value.name not in done:
            done[value.name] = quantize_dequantize(graph, value, site, dtype)
        addition.replace_input_with(index, done[value.name])
    if not skips:
        return []
    return [f"{len(skips)} residual additions read their skip input quantized."]


def _write_weight(graph: ir.Graph, layer: Layer, dtype: DTypeLike) -> None:
    """Store the weight as INT8 and put a DequantizeLinear in front of its node."""
    entry = layer.entry
    site = Site(
        module=layer.name,
        role="weight",
        min=0.0,
        max=0.0,
        amax=layer.amax,
        axis=entry.output_axis,
        policy="int8",
    )
    codes = quantize_int8(layer.weight, site, dtype=dtype)
    del graph.initializers[entry.initializer]
    stored = add_initializer(graph, entry.initializer, codes)
    scale = np.asarray(site.symmetric_scale(dtype))
    scales = add_initializer(graph, f"{entry.initializer}.scale", scale)
    weight = insert_before(
        layer.node,
        "DequantizeLinear",
        [stored, scales],
        name=f"{entry.initializer}.dq",
        dtype=_kind(dtype),
        shape=ir.Shape(codes.shape),
        attributes={"axis": entry.output_axis},
    )
    layer.node.replace_input_with(entry.input_index, weight)


def quantize_dequantize(
    graph: ir.Graph, value: ir.Value, site: Site, dtype: DTypeLike, label: str = ""
) -> ir.Value:
    """Put Q and DQ behind a value and return the dequantized one.

    Args:
        graph: The graph of the value.
        value: What is quantized; its readers stay as they are.
        site: Its range.
        dtype: Type of the value and of the scale.
        label: What the new nodes are named after; the value unless given.
    """
    label = label or str(value.name)
    scale = add_initializer(
        graph, f"{label}.scale", np.asarray(site.symmetric_scale(dtype)).reshape(())
    )
    zero = add_initializer(graph, ZERO, np.int8(0))
    producer = value.producer()
    shape = value_shape(value)
    inputs = [value, scale, zero]
    name = f"{label}.q"
    if producer is None:
        codes = insert_before(
            graph[0], "QuantizeLinear", inputs, name=name, dtype=ir.DataType.INT8, shape=shape
        )
    else:
        codes = insert_after(
            producer, "QuantizeLinear", inputs, name=name, dtype=ir.DataType.INT8, shape=shape
        )
    quantizer = codes.producer()
    assert quantizer is not None
    return insert_after(
        quantizer,
        "DequantizeLinear",
        [codes, scale, zero],
        name=f"{label}.dq",
        dtype=_kind(dtype),
        shape=shape,
    )


def _skip_inputs(graph: ir.Graph, layers: list[Layer]) -> list[tuple[ir.Node, int, ir.Value, Site]]:
    """Find, for each residual addition behind a quantized Conv, its skip input and the range.

    The skip is the input that is not a convolution's output (an identity shortcut), or the one
    behind fewer layers (a projection shortcut).
    """
    makers = {id(layer.node): layer for layer in layers}
    depths = _depths(graph, makers)
    found: list[tuple[ir.Node, int, ir.Value, Site]] = []
    for node in graph:
        if node.op_type != "Add" or any(is_weightlike(value) for value in node.inputs):
            continue
        made = [_maker(value, makers) for value in node.inputs]
        index = 1 if made[0] is not None else 0
        if made[0] is not None and made[1] is not None:
            index = 1 if depths[node.inputs[0]] >= depths[node.inputs[1]] else 0
        value, main = node.inputs[index], made[1 - index]
        quantized = main is not None and main.is_int8 and main.entry.op == "Conv"
        if quantized and main is not None and main.skip is not None and value is not None:
            found.append((node, index, value, main.skip))
    return found


def _maker(value: ir.Value | None, makers: dict[int, Layer]) -> Layer | None:
    """Return the layer whose output alone this is."""
    producer = None if value is None else value.producer()
    if producer is None or value is None or only_consumer(value) is None:
        return None
    return makers.get(id(producer))


def _depths(graph: ir.Graph, makers: dict[int, Layer]) -> dict[ir.Value | None, int]:
    """Count for every value the most layers on a way from the input to it."""
    depths: dict[ir.Value | None, int] = {}
    for node in graph:
        depth = max((depths.get(value, 0) for value in node.inputs), default=0)
        for output in node.outputs:
            depths[output] = depth + (id(node) in makers)
    return depths


def _kind(dtype: DTypeLike) -> ir.DataType:
    return ir.DataType.from_numpy(np.dtype(dtype))
