"""Small steps for editing an ONNX graph, shared by the exporter and the flavours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = [
    "add_initializer",
    "constant_of",
    "insert_after",
    "insert_before",
    "is_weightlike",
    "nodes_by_name",
    "only_consumer",
    "read_static_shape",
    "redirect",
    "replace_node",
    "value_shape",
]


def constant_of(value: ir.Value | None) -> NDArray | None:
    """Return the array of an initializer or of a ``Constant`` node, else None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_weightlike(value: ir.Value | None) -> bool:
    """Tell whether the value is known before the network runs."""
    return value is not None and (value.is_initializer() or value.const_value is not None)


def read_static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape if every dimension of it is a number, else None."""
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(size) for size in value.shape)


def value_shape(value: ir.Value) -> ir.Shape | None:
    """Return a copy of the shape, for another value of the same shape."""
    return None if value.shape is None else ir.Shape(list(value.shape))


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the node that reads the value, if exactly one does and it is no graph output."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node


def nodes_by_name(graph: ir.Graph) -> dict[str, ir.Node]:
    """Index the nodes of a graph by their names."""
    return {node.name: node for node in graph if node.name}


def add_initializer(graph: ir.Graph, name: str, array: NDArray) -> ir.Value:
    """Return the initializer of that name, adding it to the graph if it is new."""
    known = graph.initializers.get(name)
    if known is not None:
        return known
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(np.shape(array)), name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(np.shape(array)),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _make(
    op: str,
    inputs: Sequence[ir.Value | None],
    *,
    name: str,
    dtype: ir.DataType,
    shape: ir.Shape | None,
    domain: str,
    attributes: dict[str, int | float | str | Sequence[int]] | None,
) -> ir.Node:
    output = ir.Value(name=f"{name}.out", shape=shape, type=ir.TensorType(dtype))
    return ir.node(op, inputs, attributes or {}, domain=domain, outputs=[output], name=name)


def insert_before(
    anchor: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    *,
    name: str,
    dtype: ir.DataType,
    shape: ir.Shape | None = None,
    domain: str = "",
    attributes: dict[str, int | float | str | Sequence[int]] | None = None,
) -> ir.Value:
    """Add a node with one output in front of ``anchor`` and return that output."""
    node = _make(
        op, inputs, name=name, dtype=dtype, shape=shape, domain=domain, attributes=attributes
    )
    graph = anchor.graph
    assert graph is not None
    graph.insert_before(anchor, node)
    return node.outputs[0]


def insert_after(
    anchor: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    *,
    name: str,
    dtype: ir.DataType,
    shape: ir.Shape | None = None,
    domain: str = "",
    attributes: dict[str, int | float | str | Sequence[int]] | None = None,
) -> ir.Value:
    """Add a node with one output behind ``anchor`` and return that output."""
    node = _make(
        op, inputs, name=name, dtype=dtype, shape=shape, domain=domain, attributes=attributes
    )
    graph = anchor.graph
    assert graph is not None
    graph.insert_after(anchor, node)
    return node.outputs[0]


def redirect(old: ir.Value, new: ir.Value, consumers: Iterable[ir.Node] | None = None) -> None:
    """Let consumers of ``old`` (all of them, unless given) read ``new`` instead."""
    chosen = None if consumers is None else {id(node) for node in consumers}
    for use in list(old.uses()):
        if chosen is None or id(use.node) in chosen:
            use.node.replace_input_with(use.idx, new)


def replace_node(old: ir.Node, new: ir.Value) -> None:
    """Let everything behind ``old`` (one output) read ``new``, then remove ``old``."""
    graph = old.graph
    assert graph is not None
    output = old.outputs[0]
    ir.convenience.replace_all_uses_with(output, new, replace_graph_outputs=True)
    graph.remove(old, safe=True)
