"""Compute only the tokens that are read: a rewrite for networks that classify one token.

A vision transformer that classifies its class token reads one of some 200 rows of its last block.
Taking that row before the last projection and MLP instead of after the last norm changes no result
and saves three quarters of the last block's integer products.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from elastic_export.export.graph import (
    add_initializer,
    constant_of,
    insert_before,
    is_weightlike,
    read_static_shape,
    replace_node,
)

__all__ = ["select_tokens_early"]

ROWWISE = ("Add", "Mul", "Gelu", "LayerNormalization", "MatMul", "MultiHeadAttention", "Relu")
"""Operators whose result for one token needs that token alone, given that their other inputs do not
run over tokens (or run over the same tokens). Attention needs all keys, but only one query."""


def select_tokens_early(graph: ir.Graph) -> int:
    """Move a ``Gather`` of one token (axis 1 of ``(B, N, C)``) in front of what it makes needless.

    Returns:
        How many nodes now work on one token.
    """
    gathers = [node for node in graph if _reads_one_token(node)]
    if len(gathers) != 1:
        return 0
    (gather,) = gathers
    tokens = gather.inputs[0]
    assert tokens is not None
    shape = read_static_shape(tokens)
    if shape is None:
        return 0
    region = _needless_region(graph, gather, shape[:2])
    if not any(node.op_type == "MatMul" for node in region):
        return 0
    index = constant_of(gather.inputs[1])
    assert index is not None
    position = add_initializer(
        graph, f"{gather.name}.position", np.array([int(index.reshape(()))], np.int64)
    )
    _take_rows_at_border(graph, region, position, shape[:2])
    for node in region:
        old = read_static_shape(node.outputs[0])
        assert old is not None
        node.outputs[0].shape = ir.Shape([old[0], 1, *old[2:]])
    axis = add_initializer(graph, f"{gather.name}.axis", np.array([1], np.int64))
    squeezed = insert_before(
        gather,
        "Squeeze",
        [tokens, axis],
        name=f"{gather.name}.squeeze",
        dtype=ir.DataType.FLOAT,
        shape=gather.outputs[0].shape,
    )
    replace_node(gather, squeezed)
    return len(region)


def _reads_one_token(node: ir.Node) -> bool:
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 1:
        return False
    index, data = constant_of(node.inputs[1]), node.inputs[0]
    if index is None or index.ndim != 0 or data is None or is_weightlike(data):
        return False
    shape = read_static_shape(data)
    return shape is not None and len(shape) == 3 and shape[1] > 1


def _needless_region(graph: ir.Graph, gather: ir.Node, tokens: tuple[int, ...]) -> list[ir.Node]:
    """Collect the row-wise nodes of which only the gathered row is ever used, last first."""
    wanted = {id(gather)}
    region: list[ir.Node] = []
    for node in reversed(list(graph)):
        if node.op_type not in ROWWISE or len(node.outputs) != 1:
            continue
        output = node.outputs[0]
        if output.is_graph_output() or not output.uses():
            continue
        readers = [(use.node, use.idx) for use in output.uses()]
        if all(_needs_one_row(*reader, wanted) for reader in readers) and _is_rowwise(node, tokens):
            wanted.add(id(node))
            region.append(node)
    return region


def _needs_one_row(reader: ir.Node, index: int, wanted: set[int]) -> bool:
    if id(reader) not in wanted:
        return False
    return reader.op_type != "MultiHeadAttention" or index == 0


def _is_rowwise(node: ir.Node, tokens: tuple[int, ...]) -> bool:
    shape = read_static_shape(node.outputs[0])
    if shape is None or len(shape) != 3 or shape[:2] != tokens:
        return False
    if node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) not in (-1, 2):
        return False
    if node.op_type == "MultiHeadAttention":
        return True
    if node.op_type == "MatMul":
        weight = node.inputs[1]
        return weight is not None and is_weightlike(weight) and len(weight.shape or ()) == 2
    for value in node.inputs:
        if value is None:
            continue
        if is_weightlike(value):
            if len(value.shape or ()) > 1:
                return False
        elif read_static_shape(value) != shape:
            return False
    return True


def _take_rows_at_border(
    graph: ir.Graph, region: list[ir.Node], position: ir.Value, tokens: tuple[int, ...]
) -> None:
    inside = {id(node) for node in region}
    taken: dict[str, ir.Value] = {}
    for node in reversed(region):
        # Keys and values of attention are inputs 1 and 2: they stay whole.
        through = node.inputs[:1] if node.op_type == "MultiHeadAttention" else node.inputs
        for index, value in enumerate(through):
            if value is None or is_weightlike(value):
                continue
            producer = value.producer()
            if producer is not None and id(producer) in inside:
                continue
            name = f"{value.name}.row"
            if name not in taken:
                shape = read_static_shape(value)
                assert shape is not None
                taken[name] = insert_before(
                    node,
                    "Gather",
                    [value, position],
                    name=name,
                    dtype=value.dtype or ir.DataType.FLOAT,
                    shape=ir.Shape([shape[0], 1, shape[2]]),
                    attributes={"axis": 1},
                )
            node.replace_input_with(index, taken[name])
