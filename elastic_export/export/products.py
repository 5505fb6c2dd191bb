"""Where the attentions of a graph are: ``query @ key -> ... -> Softmax -> probs @ value``.

Found by structure alone, so in clean files and in flavours: between the first product and the
Softmax may lie what changes single scores (bias, mask, scale) or only moves them.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from elastic_export.export.graph import constant_of, is_weightlike

__all__ = ["MOVES", "SCORE_STEPS", "Products", "find_products", "scalar_behind", "unscaled"]

MOVES = (
    *("Cast", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
)
"""Operators whose result holds values of their first input and no others."""

SCORE_STEPS = (*MOVES, "Add", "Sub", "Mul", "Div", "Where", "QuantizeLinear", "DequantizeLinear")
PROBS_STEPS = (*MOVES, "QuantizeLinear", "DequantizeLinear")

MAX_STEPS = 16
"""A bias and a mask with their reshapes take eight."""


@dataclass(frozen=True)
class Products:
    """The two products of an attention and the Softmax between them."""

    first: ir.Node
    softmax: ir.Node
    second: ir.Node


def find_products(graph: ir.Graph) -> list[Products]:
    """Return the attentions of a graph, in the order of its Softmax nodes."""
    found = []
    for node in graph:
        if node.op_type != "Softmax":
            continue
        first, second = _first(node), _second(node)
        if first is not None and second is not None:
            found.append(Products(first, node, second))
    return found


def scalar_behind(value: ir.Value | None) -> float:
    """Return the number that a tensor was multiplied by since it was computed.

    Looks back through operators that only move values, as ``quantize.tracking`` does in torch.
    """
    factor = 1.0
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in MOVES:
            value = node.inputs[0]
            continue
        scaled = unscaled(node)
        if scaled is None:
            break
        value, step = scaled
        factor *= step
    return factor


def unscaled(node: ir.Node) -> tuple[ir.Value | None, float] | None:
    """Read ``other * scalar`` or ``other / scalar``; None for any other node."""
    if node.op_type not in ("Mul", "Div"):
        return None
    for index in (0, 1) if node.op_type == "Mul" else (1,):
        number = constant_of(node.inputs[index])
        if number is not None and number.size == 1:
            step = float(number.reshape(()))
            return node.inputs[1 - index], step if node.op_type == "Mul" else 1 / step
    return None


def _first(softmax: ir.Node) -> ir.Node | None:
    """Go back from the Softmax to the nearest product of two computed tensors."""
    edge, steps = _producers(softmax), 0
    while edge and steps < MAX_STEPS:
        products = [node for node in edge if _is_product(node)]
        if products:
            return products[0]
        edge = [up for node in edge if node.op_type in SCORE_STEPS for up in _producers(node)]
        steps += 1
    return None


def _second(softmax: ir.Node) -> ir.Node | None:
    """Go on from the Softmax to the product whose left operand its result is."""
    value = softmax.outputs[0]
    for _ in range(MAX_STEPS):
        uses = list(value.uses())
        if len(uses) != 1:
            return None
        node, index = uses[0].node, uses[0].idx
        if _is_product(node):
            return node if index == 0 else None
        if node.op_type not in PROBS_STEPS or index != 0:
            return None
        value = node.outputs[0]
    return None


def _is_product(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and not any(is_weightlike(value) for value in node.inputs)


def _producers(node: ir.Node) -> list[ir.Node]:
    computed = (v for v in node.inputs if v is not None and not is_weightlike(v))
    return [producer for value in computed if (producer := value.producer()) is not None]
