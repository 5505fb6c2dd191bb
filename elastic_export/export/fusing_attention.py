"""Which nodes one attention kernel holds, and which movements a product does by itself."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from elastic_export.export.fusing_shapes import Work
from elastic_export.export.graph import is_weightlike, read_static_shape
from elastic_export.export.products import (
    MOVES,
    SCORE_STEPS,
    Products,
    find_products,
    unscaled,
)

__all__ = ["Heads", "attention_heads", "product_moves"]

HEAD_SIZES = range(16, 257, 8)
"""Head sizes that TensorRT fuses in FP16, by its guide (quoted in TensorRT issues 2981, 4167)."""


@dataclass(frozen=True)
class Heads:
    """One attention that becomes one kernel."""

    name: str
    work: Work


def attention_heads(graph: ir.Graph, *, fuse: bool) -> dict[ir.Node, Heads]:
    """Map every node inside a fused attention to it, its movements of query, key and value too."""
    found: dict[ir.Node, Heads] = {}
    for products in find_products(graph) if fuse else ():
        work = _work(products)
        if work is None:
            continue
        heads = Heads(str(products.softmax.name), work)
        between = _between(products)
        ends = [*products.first.inputs, products.second.inputs[1]]
        inside = {products.first, products.softmax, products.second, *between}
        for node in inside | _closed(_behind(ends), inside) | _following(products.second):
            found[node] = heads
    return found


def product_moves(graph: ir.Graph, taken: dict[ir.Node, Heads]) -> set[ir.Node]:
    """Find the movements in front of products of computed tensors, and behind them.

    A batched product reads and writes matrices at strides, so these are no kernels.
    """
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type != "MatMul" or node in taken or any(map(is_weightlike, node.inputs)):
            continue
        moves = {move for move in _behind(node.inputs) if move.op_type in MOVES}
        found |= _closed(moves, {node}) | _following(node)
    return {node for node in found if node not in taken}


def _work(products: Products) -> Work | None:
    """Measure both products; None where the heads do not allow one kernel."""
    query, scores = products.first.inputs[0], products.first.outputs[0]
    mixed = products.second.outputs[0]
    shapes = [read_static_shape(v) for v in (query, scores, mixed) if v is not None]
    if len(shapes) < 3 or any(shape is None or len(shape) < 2 for shape in shapes):
        return None
    q, s, o = (shape for shape in shapes if shape is not None)
    if q[-1] not in HEAD_SIZES:
        return None
    groups = math.prod(s[:-2])
    macs = groups * s[-2] * s[-1] * (q[-1] + o[-1])
    return Work("attention", macs, s[-2], s[-1], q[-1], groups)


def _between(products: Products) -> set[ir.Node]:
    """Find what is done to the scores and the probabilities."""
    found: set[ir.Node] = set()
    for end, start in (
        (products.softmax, products.first),
        (products.second.inputs[0], products.softmax),
    ):
        first = end.inputs[0] if isinstance(end, ir.Node) else end
        edge = [first]
        while edge:
            value = edge.pop()
            node = None if value is None else value.producer()
            if node is None or node is start or node in found or node.op_type not in SCORE_STEPS:
                continue
            found.add(node)
            edge += [v for v in node.inputs if v is not None and not is_weightlike(v)]
    return found


def _behind(values: Iterable[ir.Value | None]) -> set[ir.Node]:
    """Go back through what only moves or scales values."""
    found: set[ir.Node] = set()
    edge = list(values)
    while edge:
        value = edge.pop()
        node = None if value is None else value.producer()
        if node is None or node in found:
            continue
        scaled = unscaled(node)
        if node.op_type in MOVES or scaled is not None:
            found.add(node)
            edge.append(node.inputs[0] if scaled is None else scaled[0])
    return found


def _closed(nodes: set[ir.Node], inside: set[ir.Node]) -> set[ir.Node]:
    """Keep the nodes that nobody else reads."""
    kept = set(nodes)
    while True:
        around = kept | inside
        open_ends = {
            node
            for node in kept
            if any(use.node not in around for out in node.outputs for use in out.uses())
        }
        if not open_ends:
            return kept
        kept -= open_ends


def _following(node: ir.Node) -> set[ir.Node]:
    """Find the transpose and reshape that put the heads side by side again."""
    found: set[ir.Node] = set()
    while True:
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type not in ("Transpose", "Reshape"):
            return found
        node = uses[0].node
        if node.op_type == "Transpose" and any(n.op_type == "Transpose" for n in found):
            return found
        found.add(node)
