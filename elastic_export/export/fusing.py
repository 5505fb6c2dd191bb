"""Group the nodes of a graph into kernels; see ``fused_layers``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from elastic_export.config.fused_layer import FusedLayer, Kind, Read
from elastic_export.errors import UserError
from elastic_export.export.fusing_attention import Heads, attention_heads, product_moves
from elastic_export.export.fusing_shapes import Work, work_of
from elastic_export.export.graph import is_weightlike, read_static_shape

__all__ = ["Fusion"]

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast")
PARTS = ("Slice", "Split", "Gather")
POINTWISE = (
    *("Abs", "Add", "BatchNormalization", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor"),
    *("Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg"),
    *("Pow", "PRelu", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh", "Where"),
)
SIMPLE = ("Add", "Clip", "Relu")
"""What a product takes along before compute capability 7.5, by the fusions of TensorRT's guide."""
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")
REDUCTIONS = ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
NORMS = ("GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization")
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Kernels that write each value once and can do something to it before they do.
OPEN = ("conv", "gemm", "product", "norm", "elementwise", "movement", "softmax")
TILED = ("conv", "gemm", "product")
CHAIN = 8
"""An activation written out (erf GELU, hard swish) takes up to six nodes."""


@dataclass
class _Group:
    """A kernel in the making; ``before`` is a bit set of the groups that must run before it."""

    kind: Kind
    name: str
    work: Work
    nodes: list[ir.Node] = field(default_factory=list)
    reads: dict[int, int] = field(default_factory=dict)
    constants: dict[int, int] = field(default_factory=dict)
    width: int = 0
    before: int = 0
    added: bool = False


class Fusion:
    """One pass over the nodes of a graph, which are in topological order."""

    def __init__(self, graph: ir.Graph, turing: bool) -> None:
        self._graph, self._turing = graph, turing
        self._groups: list[_Group] = []
        self._sources: dict[ir.Value, list[tuple[int, int]]] = {}
        self._known: set[ir.Value] = set()
        self._heads: dict[ir.Node, Heads] = attention_heads(graph, fuse=turing)
        self._absorbed = product_moves(graph, self._heads)
        self._attentions: dict[int, int] = {}
        shape = read_static_shape(graph.inputs[0]) or (1,)
        self._images = shape[0] if shape else 1

    def layers(self, path: Path) -> list[FusedLayer]:
        """Return the kernels in the order in which they run.

        Raises:
            UserError: A shape inside the graph is not known.
        """
        for value in self._graph.inputs:
            self._sources[value] = [(-1, _elements(value, path))]
        for node in self._graph:
            if all(value is None or self._is_known(value) for value in node.inputs):
                self._known.update(node.outputs)
                continue
            for value in node.outputs:
                _elements(value, path)
            self._take(node)
        return [self._layer(group) for group in self._groups]

    def _take(self, node: ir.Node) -> None:
        heads = self._heads.get(node)
        op = node.op_type
        if heads is not None:
            self._attend(node, heads)
        elif op in VIEWS or op in PARTS or node in self._absorbed or _moves_nothing(node):
            self._look_through(node)
        elif op in PRODUCTS:
            work = work_of(node, self._is_known, self._images)
            self._open(work.kind, node, work)
        elif op in REDUCTIONS:
            kind: Kind = "norm" if _along_last(node) else "pool"
            self._open(kind, node) if kind == "pool" else self._join_or_open(node, kind)
        elif op in POOLS:
            self._open("pool", node)
        elif op in NORMS:
            self._open("norm", node)
        elif op == "Softmax":
            self._open("softmax", node)
        elif op in POINTWISE:
            self._join_or_open(node, "elementwise")
        elif op == "Concat" and self._written_in_place(node):
            pairs = [pair for value in node.inputs for pair in self._from(value)]
            self._sources[node.outputs[0]] = pairs
        else:
            self._join_or_open(node, "movement")

    def _attend(self, node: ir.Node, heads: Heads) -> None:
        """Put all nodes of one attention into one group."""
        index = self._attentions.get(id(heads))
        if index is None:
            self._attentions[id(heads)] = index = len(self._groups)
            self._groups.append(_Group("attention", heads.name, heads.work))
        self._add(index, node)

    def _look_through(self, node: ir.Node) -> None:
        """A view holds what its input does; a part of it, that share."""
        first = next(v for v in node.inputs if v is not None and not self._is_known(v))
        pairs = self._from(first)
        whole = sum(elements for _, elements in pairs)
        for value in node.outputs:
            share = min(1.0, _count(value) / max(whole, 1))
            self._sources[value] = [(group, round(size * share)) for group, size in pairs]

    def _open(self, kind: Kind, node: ir.Node, work: Work | None = None) -> None:
        self._groups.append(
            _Group(kind, str(node.name or node.outputs[0].name), work or Work(kind))
        )
        self._add(len(self._groups) - 1, node)

    def _join_or_open(self, node: ir.Node, kind: Kind) -> None:
        pairs = [(g, value) for value in node.inputs for g, _ in self._from(value) if g >= 0]
        for index, value in sorted(pairs, key=lambda pair: -pair[0]):
            if value is not None and self._may_join(index, value, node, kind):
                self._add(index, node)
                return
        beside = self._beside(node) if kind == "elementwise" else None
        if beside is None:
            self._open(kind, node)
        else:
            self._add(beside, node)

    def _beside(self, node: ir.Node) -> int | None:
        """Find the element-wise kernel that the result will meet: two ways from one tensor."""
        following = set(self._readers(node.outputs[0]))
        mine = {source for value in node.inputs for source, _ in self._from(value)}
        for value in following.pop().inputs if len(following) == 1 else ():
            for index, _ in self._from(value):
                if index >= 0 and self._groups[index].kind == "elementwise":
                    late = any(g >= 0 and self._groups[g].before >> index & 1 for g in mine)
                    if mine & set(self._groups[index].reads) and not late:
                        return index
        return None

    def _may_join(self, index: int, value: ir.Value, node: ir.Node, kind: Kind) -> bool:
        group = self._groups[index]
        others = {g for v in node.inputs for g, _ in self._from(v) if g not in (index, -1)}
        if group.kind not in OPEN or any(self._groups[g].before >> index & 1 for g in others):
            return False
        if not self._closes(index, value, node):
            return False
        if group.kind in TILED:
            # The tile is written as it was computed, with one more tensor of its size added.
            fits = kind == "elementwise" and _count(node.outputs[0]) == group.width
            plain = not others or (node.op_type == "Add" and not group.added)
            return fits and plain and (self._turing or node.op_type in SIMPLE)
        if kind == "norm" or group.kind in ("norm", "softmax"):
            return kind != "movement" and _same_rows(node.outputs[0], group)
        return kind != "movement" or group.kind == "movement"

    def _closes(self, index: int, value: ir.Value, node: ir.Node) -> bool:
        """Tell whether nobody outside the group will need the value that ``node`` reads."""
        if value.is_graph_output():
            return False
        inside = set(self._groups[index].nodes) | {node}
        left = {reader for reader in self._readers(value) if reader not in inside}
        chain = self._chain(node)
        return all(reader in chain or self._chain(reader) & chain for reader in left)

    def _chain(self, node: ir.Node) -> set[ir.Node]:
        """Follow what alone reads the result of an element-wise operator, and so on."""
        found: set[ir.Node] = set()
        while node.op_type in (*POINTWISE, *REDUCTIONS) and len(found) < CHAIN:
            found.add(node)
            following = set(self._readers(node.outputs[0]))
            if len(following) != 1 or node.outputs[0].is_graph_output():
                break
            (node,) = following
        return found

    def _readers(self, value: ir.Value) -> Iterator[ir.Node]:
        """List what reads a value, through what only looks at it."""
        for use in value.uses():
            node = use.node
            looks = node.op_type in (*VIEWS, *PARTS) or node in self._absorbed
            if looks and node not in self._heads:
                for output in node.outputs:
                    yield from self._readers(output)
            else:
                yield node

    def _written_in_place(self, node: ir.Node) -> bool:
        """TensorRT lets producers write their channels of the joined tensor themselves."""
        ranks = {len(v.shape) for v in node.inputs if v is not None and v.shape is not None}
        makers = [g for value in node.inputs for g, _ in self._from(value)]
        computed = all(v is not None and not self._is_known(v) for v in node.inputs)
        kernels = all(g >= 0 and self._groups[g].kind != "movement" for g in makers)
        return node.attributes.get_int("axis", 0) == 1 and ranks == {4} and computed and kernels

    def _add(self, index: int, node: ir.Node) -> None:
        group = self._groups[index]
        group.nodes.append(node)
        for value in node.inputs:
            if value is not None and self._is_known(value):
                group.constants[id(value)] = _count(value) if value.shape is not None else 0
            for source, elements in self._from(value):
                if source != index:
                    group.added = group.added or len(group.nodes) > 1
                    group.reads[source] = max(group.reads.get(source, 0), elements)
                    group.before |= self._before(source)
        group.width = _count(node.outputs[0])
        for value in node.outputs:
            self._sources[value] = [(index, _count(value))]

    def _before(self, source: int) -> int:
        return 0 if source < 0 else self._groups[source].before | 1 << source

    def _from(self, value: ir.Value | None) -> list[tuple[int, int]]:
        return [] if value is None else self._sources.get(value, [])

    def _is_known(self, value: ir.Value) -> bool:
        return value in self._known or is_weightlike(value)

    def _written(self, group: _Group) -> int:
        """Count what somebody outside reads; a look at a part does not make it more."""
        inside = set(group.nodes)
        return (
            sum(
                _count(value)
                for node in group.nodes
                for value in node.outputs
                if value.is_graph_output() or any(r not in inside for r in self._readers(value))
            )
            or group.width
        )

    def _layer(self, group: _Group) -> FusedLayer:
        work = group.work
        reads = tuple(Read(layer=i, elements=size) for i, size in sorted(group.reads.items()))
        return FusedLayer(
            name=group.name,
            kind=group.kind,
            nodes=tuple(str(node.name) for node in group.nodes),
            reads=reads,
            weights=sum(size for size in group.constants.values() if size > 1),
            output=self._written(group),
            macs=work.macs,
            m=work.m,
            n=work.n,
            k=work.k,
            groups=work.groups,
            int8=work.int8,
            eligible_2_4=work.eligible_2_4,
            sparse=work.sparse,
        )


def _elements(value: ir.Value, path: Path) -> int:
    if read_static_shape(value) is None:
        raise UserError(
            f'The shape of "{value.name}" in {path} cannot be told from the file.',
            "Export the network for one fixed batch and image size.",
        )
    return _count(value)


def _count(value: ir.Value) -> int:
    shape = read_static_shape(value)
    return 0 if shape is None else math.prod(shape)


def _moves_nothing(node: ir.Node) -> bool:
    """A transpose that only moves axes of size one leaves memory as it is."""
    if node.op_type != "Transpose" or node.inputs[0] is None:
        return False
    shape = read_static_shape(node.inputs[0])
    if shape is None or "perm" not in node.attributes:
        return False
    kept = [axis for axis in node.attributes["perm"].as_ints() if shape[axis] > 1]
    return kept == sorted(kept)


def _along_last(node: ir.Node) -> bool:
    """Tell whether a reduction is over the last axis alone, as a normalisation's is."""
    before, after = node.inputs[0], node.outputs[0]
    shapes = [] if before is None else [read_static_shape(before), read_static_shape(after)]
    if len(shapes) != 2 or shapes[0] is None or shapes[1] is None:
        return False
    return math.prod(shapes[0][:-1]) == math.prod(shapes[1]) and len(shapes[0]) < 4


def _same_rows(value: ir.Value, group: _Group) -> bool:
    """A normalisation works row by row: its kernel goes on with whole rows or one value of each."""
    sizes = {_count(output) for node in group.nodes for output in node.outputs}
    return _count(value) in sizes or any(_count(value) % max(size, 1) == 0 for size in sizes)
