"""Symmetric Q/DQ for TensorRT, in FP16 or FP32.

What NVIDIA's parser takes (tried with TensorRT-RTX 1.7.1): zero points of 0, INT8 weights behind a
DequantizeLinear, no INT32 bias, no integer operators. Placement follows NVIDIA's ModelOpt: Q/DQ on
the inputs of quantized Conv, MatMul and Gemm only, shared by all readers of a tensor, and on the
skip input of a residual addition, so that the convolution before it fuses with the addition.
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

__all__ = ["write_symmetric"]

ZERO = "zero_point.int8"

POOLS = ("AveragePool", "MaxPool")


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
    sites = {value.name: layer.input for layer, value in reversed(inputs)}
    skips = _skip_inputs(graph, chosen, sites)
    done: dict[str | None, ir.Value] = {}
    for layer, value in inputs:
        _write_weight(graph, layer, dtype)
        if value.name not in done:
            done[value.name] = _quantize_dequantize(graph, value, layer.input, dtype)
        layer.node.replace_input_with(layer.source_index, done[value.name])
    for addition, index, value, site in skips:
        if value.name not in done:
            done[value.name] = _quantize_dequantize(graph, value, site, dtype)
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


def _quantize_dequantize(
    graph: ir.Graph, value: ir.Value, site: Site, dtype: DTypeLike
) -> ir.Value:
    """Put Q and DQ behind a value and return the dequantized one."""
    scale = add_initializer(
        graph, f"{value.name}.scale", np.asarray(site.symmetric_scale(dtype)).reshape(())
    )
    zero = add_initializer(graph, ZERO, np.int8(0))
    producer = value.producer()
    shape = value_shape(value)
    inputs = [value, scale, zero]
    name = f"{value.name}.q"
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
        name=f"{value.name}.dq",
        dtype=_kind(dtype),
        shape=shape,
    )


def _skip_inputs(
    graph: ir.Graph, chosen: list[Layer], sites: dict[str | None, Site]
) -> list[tuple[ir.Node, int, ir.Value, Site]]:
    """Find, for each residual addition behind a quantized Conv, its skip input and the range.

    The skip is the input that is not a convolution's output (an identity shortcut), or the one
    whose convolution reads what the other branch started from (a projection shortcut).
    """
    makers = {id(layer.node): layer for layer in chosen if layer.entry.op == "Conv"}
    found: list[tuple[ir.Node, int, ir.Value, Site]] = []
    for node in graph:
        if node.op_type != "Add" or any(is_weightlike(value) for value in node.inputs):
            continue
        made = [_maker(value, makers) for value in node.inputs]
        if made[0] is None and made[1] is None:
            continue
        if made[0] is not None and made[1] is not None:
            index = 1 if _starts(made[1], made[0]) else 0
        else:
            index = 1 if made[1] is None else 0
        value, maker = node.inputs[index], made[index]
        assert value is not None
        site = sites.get(value.name)
        if site is None and maker is not None and not maker.entry.folded:
            site = maker.output
        if site is not None:
            found.append((node, index, value, site))
    return found


def _maker(value: ir.Value | None, makers: dict[int, Layer]) -> Layer | None:
    """Return the quantized Conv whose output alone this is."""
    producer = None if value is None else value.producer()
    if producer is None or value is None or only_consumer(value) is None:
        return None
    return makers.get(id(producer))


def _starts(skip: Layer, main: Layer) -> bool:
    """Tell whether ``main``'s branch descends from the tensor that ``skip``'s branch reads."""
    start = skip.source
    pool = start.producer()
    while pool is not None and pool.op_type in POOLS and pool.inputs[0] is not None:
        start = pool.inputs[0]
        pool = start.producer()
    seen: set[int] = set()
    stack: list[ir.Value] = [main.source]
    while stack:
        value = stack.pop()
        if value is start:
            return True
        producer = value.producer()
        if producer is None or id(producer) in seen:
            continue
        seen.add(id(producer))
        stack.extend(v for v in producer.inputs if v is not None and not is_weightlike(v))
    return False


def _kind(dtype: DTypeLike) -> ir.DataType:
    return ir.DataType.from_numpy(np.dtype(dtype))
