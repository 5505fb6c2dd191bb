"""Linear layers: one integer product each, with its bias, floating point in between.

A ``Linear`` becomes ONNX Runtime's ``MatMulIntegerToFloat``, which takes the bias and needs no
range of the output. Written as Q/DQ around ``MatMul`` the same kernel is used, but the bias stays a
node of its own; with a one-dimensional bias ``MatMulAddFusion`` even turns the pair into a ``Gemm``
on dequantized weights that is slower than FP32.

GELU in front takes its tanh form where the difference (below 5e-4) is under a quarter of the step
it is then rounded to.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from elastic_export.export.affine import affine_of
from elastic_export.export.attention import MICROSOFT
from elastic_export.export.graph import (
    add_initializer,
    constant_of,
    insert_before,
    only_consumer,
    replace_node,
    value_shape,
)
from elastic_export.export.layers import Layer
from elastic_export.export.ort_cpu.codes import Codes
from elastic_export.export.ort_cpu.rows import codes_of, move_back
from elastic_export.export.saturation import pair_safe_int8

__all__ = ["TANH_GELU_ERROR", "Written", "write_linears"]

TANH_GELU_ERROR = 4.8e-4
"""Largest absolute difference between GELU and its tanh form, at |x| near 2.3 (measured)."""


@dataclass
class Written:
    """How many GELU became their tanh form, and how many products read moved bytes."""

    gelus: int = 0
    moved: int = 0


def write_linears(codes: Codes, layers: list[Layer]) -> Written:
    """Rewrite every INT8 linear layer."""
    written = Written()
    for layer in layers:
        written.gelus += _use_tanh_gelu(layer)
        written.moved += _write(codes, layer)
    return written


def _use_tanh_gelu(layer: Layer) -> int:
    gelu = layer.source.producer()
    if gelu is None or gelu.op_type != "Gelu" or only_consumer(layer.source) is None:
        return 0
    if gelu.attributes.get_string("approximate", "none") == "tanh":
        return 0
    if float(affine_of(layer.input).scale) < 4 * TANH_GELU_ERROR:
        return 0
    gelu.attributes["approximate"] = ir.AttrString("approximate", "tanh")
    return 1


def _write(codes: Codes, layer: Layer) -> bool:
    node, entry = layer.node, layer.entry
    graph = codes.graph
    rows = layer.weight if entry.output_axis == 0 else layer.weight.T
    integers, scale = pair_safe_int8(rows, layer.amax)
    del graph.initializers[entry.initializer]
    weight = add_initializer(graph, entry.initializer, integers.T)
    scales = add_initializer(graph, f"{entry.initializer}.scale", scale)
    source, moved = codes_of(codes, layer)
    last, bias = _bias_of(node)
    output_of, source_value, back = move_back(codes, layer, last, source.value)
    inputs = [
        source_value,
        weight,
        *codes.parameters(source.name, source.affine)[:1],
        scales,
        codes.parameters(source.name, source.affine)[1],
        None,
        bias,
    ]
    output = insert_before(
        last,
        "MatMulIntegerToFloat",
        inputs if bias is not None else inputs[:5],
        name=f"{entry.node}.new",
        dtype=ir.DataType.FLOAT,
        shape=value_shape(output_of.outputs[0]),
        domain=MICROSOFT,
    )
    product = output.producer()
    assert product is not None
    product.name, output.name = entry.node, f"{entry.node}.out"
    replace_node(output_of, output)
    _remove_unread(graph, node)
    return moved or back


def _remove_unread(graph: ir.Graph, first: ir.Node) -> None:
    """Remove what is left of a layer and of the moves behind it."""
    if first.graph is not graph:
        return
    waiting, dead = [first], [first]
    while waiting:
        for output in waiting.pop().outputs:
            readers = [use.node for use in output.uses()]
            waiting += readers
            dead += readers
    graph.remove(dict.fromkeys(reversed(dead)), safe=True)


def _bias_of(node: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """Return the last node of a linear layer (the product or its bias addition) and the bias."""
    if node.op_type == "Gemm":
        return node, node.inputs[2] if len(node.inputs) > 2 else None
    follower = only_consumer(node.outputs[0])
    if follower is None or follower.op_type != "Add":
        return node, None
    other = follower.inputs[1] if follower.inputs[0] is node.outputs[0] else follower.inputs[0]
    array = constant_of(other)
    if array is None or array.ndim != 1:
        return node, None
    return follower, other
