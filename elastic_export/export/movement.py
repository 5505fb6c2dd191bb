"""Where values come from when operators only move them: Reshape, Transpose, Split and kin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from elastic_export.export.graph import constant_of, only_consumer, read_static_shape

__all__ = ["Trace", "destinations", "follow", "trace"]

MOVES = ("Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")

JOINS = "Concat"
"""The operator that puts parts together; it only moves where all parts come from one value."""


@dataclass(frozen=True)
class Trace:
    """A value explained as moved elements of another.

    Args:
        root: The value the elements come from.
        places: int64, in the shape of the explained value: positions in the flattened root.
        nodes: The operators in between.
    """

    root: ir.Value
    places: NDArray[np.int64]
    nodes: tuple[ir.Node, ...]


def trace(value: ir.Value | None) -> Trace | None:
    """Go back through operators that only move values.

    Returns:
        The trace to the first value that is computed, or None where a shape is unknown.
    """
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == JOINS:
        joined = _join(node)
        if joined is not None:
            return joined
    if node is None or node.op_type not in MOVES:
        shape = read_static_shape(value)
        if shape is None:
            return None
        places = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        return Trace(value, places, ())
    before = trace(node.inputs[0])
    moved = None if before is None else _move(node, before.places, value)
    if before is None or moved is None:
        return None
    return Trace(before.root, moved, (*before.nodes, node))


def _join(node: ir.Node) -> Trace | None:
    parts = [trace(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    if not known or len(known) != len(parts) or len({part.root for part in known}) != 1:
        return None
    axis = node.attributes.get_int("axis", 0)
    places = np.concatenate([part.places for part in known], axis)
    nodes = dict.fromkeys(each for part in known for each in part.nodes)
    return Trace(known[0].root, places, (*nodes, node))


def destinations(value: ir.Value) -> list[ir.Value]:
    """Return the moved forms of a value (or itself) that something other than a move reads."""
    found: dict[ir.Value, None] = {}
    seen, waiting = {value}, [value]
    while waiting:
        current = waiting.pop(0)
        if current.is_graph_output():
            found[current] = None
        for use in current.uses():
            moves = use.node.op_type == JOINS or (use.node.op_type in MOVES and use.idx == 0)
            if not moves:
                found[current] = None
                continue
            for output in use.node.outputs:
                if output not in seen:
                    seen.add(output)
                    waiting.append(output)
    return list(found)


def follow(value: ir.Value, order: tuple[int, ...], rank: int) -> ir.Node | None:
    """Go forward through operators that only move values, up to a wanted layout.

    Args:
        value: Where to start.
        order: The order of axes that is wanted.
        rank: Trailing axes are merged until this many are left.

    Returns:
        The node whose output is ``value`` transposed by ``order`` with its last axes merged.
    """
    shape = read_static_shape(value)
    if shape is None:
        return None
    places = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    wanted = places.transpose(order)
    wanted = wanted.reshape(*wanted.shape[: rank - 1], -1)
    node = only_consumer(value)
    while node is not None and node.op_type in MOVES:
        moved = _move(node, places, node.outputs[0])
        if moved is None or moved.size != wanted.size:
            return None
        if moved.shape == wanted.shape and np.array_equal(moved, wanted):
            return node
        places, node = moved, only_consumer(node.outputs[0])
    return None


def _move(node: ir.Node, places: NDArray[np.int64], output: ir.Value) -> NDArray[np.int64] | None:
    """Do to positions what the node does to values."""
    shape = read_static_shape(output)
    if shape is None:
        return None
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze"):
        return places.reshape(shape)
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        return places.transpose(order.as_ints() if order is not None else None)
    if node.op_type == "Split":
        axis = node.attributes.get_int("axis", 0)
        sizes = [read_static_shape(part) for part in node.outputs]
        index = list(node.outputs).index(output)
        known = [size[axis] for size in sizes if size is not None]
        if len(known) != len(sizes):
            return None
        start = sum(known[:index])
        return places.take(range(start, start + known[index]), axis=axis)
    constants = [constant_of(value) for value in node.inputs[1:]]
    if any(array is None for array in constants):
        return None
    arrays = [array for array in constants if array is not None]
    if node.op_type == "Gather":
        return places.take(arrays[0], axis=node.attributes.get_int("axis", 0))
    starts, ends = arrays[0].tolist(), arrays[1].tolist()
    axes = arrays[2].tolist() if len(arrays) > 2 else list(range(len(starts)))
    steps = arrays[3].tolist() if len(arrays) > 3 else [1] * len(starts)
    cuts = [slice(None)] * places.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cuts[axis] = slice(start, end, step)
    return places[tuple(cuts)]
