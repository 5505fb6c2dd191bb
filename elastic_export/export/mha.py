"""Attention products in INT8 for TensorRT: placed, and checked for what lets TensorRT fuse them.

TensorRT runs an attention as one kernel only in certain shapes. Its guide (quoted in TensorRT
issues 2981 and 4167) asks for heads of 16 to 256 values, a multiple of 8, in FP16, and for heads of
16, 32 or 64 values, at most 512 tokens and Q/DQ on all four operands in INT8. It may still decline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike

from elastic_export.export.files import load_model
from elastic_export.export.graph import read_static_shape
from elastic_export.export.layers import Attention
from elastic_export.export.products import (
    MOVES,
    Products,
    find_products,
    scalar_behind,
    unscaled,
)
from elastic_export.export.simplify import infer_shapes
from elastic_export.export.symmetric import quantize_dequantize
from elastic_export.quantize.record import Role

__all__ = ["AttentionForm", "lint_attention", "quantize_attentions"]

Precision = Literal["fp32", "fp16", "int8"]

INT8_HEADS = (16, 32, 64)
INT8_TOKENS = 512
HALF_HEADS = range(16, 257, 8)

PLACES: tuple[tuple[bool, int, Role], ...] = (
    (True, 0, "bmm_a"),
    (True, 1, "bmm_b"),
    (False, 0, "probs"),
    (False, 1, "value"),
)
"""For each operand: whether it is one of the first product, which input, and its role."""

WORDS = {"bmm_a": "query", "bmm_b": "key", "probs": "Softmax", "value": "value"}


@dataclass(frozen=True)
class AttentionForm:
    """How one attention is written in a file.

    Args:
        nodes: Names of the first product, the Softmax and the second product, or of the one
            operator that computes it all.
        head_size: Values in each head; None where the shape is unknown.
        tokens: The larger of the numbers of queries and keys; None where it is unknown.
        precision: ``int8`` if any operand is quantized.
        problems: Why TensorRT would not run it as one kernel; one sentence each. An FP32 file is
            judged as FP16, which the builder chooses for it.
    """

    nodes: tuple[str, ...]
    head_size: int | None
    tokens: int | None
    precision: Precision
    problems: tuple[str, ...]

    @property
    def fuses(self) -> bool:
        """Whether nothing known keeps TensorRT from fusing it."""
        return not self.problems


def quantize_attentions(graph: ir.Graph, attentions: list[Attention], dtype: DTypeLike) -> None:
    """Quantize the operands of both products right in front of them, in place.

    A Mul or Transpose between DequantizeLinear and MatMul keeps TensorRT from fusing (NVIDIA
    Model-Optimizer issue 1289), so they stay in front of QuantizeLinear, and the ranges of query
    and key are multiplied by what was applied to them.

    Args:
        graph: In the precision that ``dtype`` names.
        attentions: What ``join_attentions`` found in it.
        dtype: Type of the scales: float16 or float32.
    """
    for attention in attentions:
        for is_first, index, role in PLACES:
            node = attention.first if is_first else attention.second
            value = node.inputs[index]
            assert value is not None
            site = attention.sites[role]
            if is_first:
                applied = np.float32(abs(scalar_behind(value)))
                site = replace(site, amax=np.asarray(site.amax * applied, np.float32))
            rounded = quantize_dequantize(graph, value, site, dtype, f"{node.name}.{role}")
            node.replace_input_with(index, rounded)


def lint_attention(path: Path) -> list[AttentionForm]:
    """Say for every attention in a file whether TensorRT could run it as one kernel.

    Args:
        path: An ONNX file of any flavour.

    Raises:
        UserError: The file cannot be read.
    """
    model = load_model(path)
    infer_shapes(model)
    found = [_form(products) for products in find_products(model.graph)]
    operators = [node for node in model.graph if node.op_type == "MultiHeadAttention"]
    return found + [_operator_form(node) for node in operators]


def _form(products: Products) -> AttentionForm:
    query, scores = products.first.inputs[0], products.first.outputs[0]
    assert query is not None
    shape, sizes = read_static_shape(query), read_static_shape(scores)
    head_size = None if shape is None else shape[-1]
    tokens = None if sizes is None else max(sizes[-2:])
    between = {}
    for is_first, index, role in PLACES:
        node = products.first if is_first else products.second
        between[role] = _behind_dequantizer(node.inputs[index])
    precision: Precision = "fp16" if scores.dtype == ir.DataType.FLOAT16 else "fp32"
    problems = []
    if any(steps is not None for steps in between.values()):
        precision = "int8"
        for role, steps in between.items():
            if steps is None:
                problems.append(f"Its {WORDS[role]} has no Q/DQ in front of the product.")
            elif steps:
                problems.append(f"Behind the DequantizeLinear of its {WORDS[role]} is {steps[-1]}.")
    problems += _size_problems(head_size, tokens, precision)
    nodes = tuple(str(n.name) for n in (products.first, products.softmax, products.second))
    return AttentionForm(nodes, head_size, tokens, precision, tuple(problems))


def _behind_dequantizer(value: ir.Value | None) -> list[str] | None:
    """Return the operators between a Q/DQ pair and a product; None where there is no pair."""
    steps: list[str] = []
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            codes = node.inputs[0]
            made = None if codes is None else codes.producer()
            return steps if made is not None and made.op_type == "QuantizeLinear" else None
        scaled = unscaled(node)
        if node.op_type not in MOVES and scaled is None:
            return None
        steps.append(node.op_type)
        value = node.inputs[0] if scaled is None else scaled[0]
    return None


def _size_problems(head_size: int | None, tokens: int | None, precision: Precision) -> list[str]:
    if head_size is None or tokens is None:
        return ["Its shape is not static."]
    if precision != "int8":
        fits = head_size in HALF_HEADS
        wants = f"FP16 wants a multiple of 8 from {HALF_HEADS[0]} to {HALF_HEADS[-1]}"
        return [] if fits else [f"Its heads have {head_size} values; {wants}."]
    problems = []
    if head_size not in INT8_HEADS:
        problems.append(f"Its heads have {head_size} values; INT8 wants 16, 32 or 64.")
    if tokens > INT8_TOKENS:
        problems.append(f"It has {tokens} tokens; INT8 takes at most {INT8_TOKENS}.")
    return problems


def _operator_form(node: ir.Node) -> AttentionForm:
    problem = f"{node.op_type} is an operator of ONNX Runtime, which TensorRT does not read."
    shape = None if node.inputs[0] is None else read_static_shape(node.inputs[0])
    heads = node.attributes.get_int("num_heads", 1)
    head_size = None if shape is None else shape[-1] // heads
    tokens = None if shape is None else shape[1]
    return AttentionForm((str(node.name),), head_size, tokens, "fp32", (problem,))
