"""Nodes that overflow FP16, and how a file tells them.

A builder that chooses FP16 by itself (weak typing, TensorRT 8 to 10 with ``--fp16``) runs a
decomposed LayerNorm in FP16, where a square overflows from 256 on (github.com/NVIDIA/TensorRT
issues 2781, 3692, 2564). The nodes that take part in such a sum of squares get a name that ends in
``.fp32``: the parser gives a layer the name of its node, so the builder can be told to keep these
layers in FP32, and any later reader of the file can list them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from elastic_export.export.files import load_model
from elastic_export.export.graph import constant_of

__all__ = ["SUFFIX", "pin", "pinned", "pinned_nodes"]

SUFFIX = ".fp32"
"""How the name of a node ends that must run in FP32."""

_SUMS = ("ReduceMean", "ReduceSum")
_BETWEEN = ("Add", "Cast", "Clip", "Max", *_SUMS)
_ROOTS = ("Sqrt", "Reciprocal", "Div")


def pinned_nodes(path: Path) -> list[str]:
    """List the nodes of a file that must run in FP32, in the order they run.

    Args:
        path: Any ONNX file.

    Returns:
        For example ``["LayerNormalization_0.mean.fp32", ...]``; empty where the file has none.

    Raises:
        UserError: The file cannot be read.
    """
    return pinned(load_model(path))


def pinned(model: ir.Model) -> list[str]:
    """List the nodes of a model whose name says that they must run in FP32."""
    return [node.name for node in model.graph if node.name and node.name.endswith(SUFFIX)]


def pin(model: ir.Model) -> list[str]:
    """Mark every float32 node of a sum of squares, in place.

    Marked are the square, the sum, what lies between it and its root, the root, and, where what is
    squared is a difference from a mean, the difference, the mean and the quotient of both. A graph
    in FP16 says its precisions itself; what it has in FP32 is marked all the same.

    Returns:
        The names of all marked nodes; marking twice changes nothing.
    """
    for square in list(model.graph):
        if _is_square(square) and square.outputs[0].dtype == ir.DataType.FLOAT:
            chain = list(_sum_of(square))
            for node in [square, *chain, *_centring(square, chain)] if chain else ():
                if node.name and not node.name.endswith(SUFFIX):
                    node.name += SUFFIX
    return pinned(model)


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    if node.op_type != "Pow":
        return False
    exponent = constant_of(node.inputs[1])
    return exponent is not None and exponent.size == 1 and float(exponent.reshape(())) >= 2


def _sum_of(square: ir.Node) -> Iterator[ir.Node]:
    """Walk from a square to the root of its sum; nothing where it is not summed."""
    node, summed, found = square, False, []
    while True:
        readers = [use.node for use in node.outputs[0].uses()]
        after = [one for one in readers if one.op_type in (*_BETWEEN, *_ROOTS)]
        if len(readers) != 1 or not after or (not summed and after[0].op_type not in _SUMS):
            break
        node, summed = after[0], True
        found.append(node)
        if node.op_type == "Div":
            break
    # The Div behind the root belongs to the chain when it is the reciprocal, 1 / root.
    yield from found


def _centring(square: ir.Node, chain: list[ir.Node]) -> Iterator[ir.Node]:
    """The difference from the mean that is squared, the mean, and difference / root."""
    value = square.inputs[0]
    difference = None if value is None else value.producer()
    if difference is None or difference.op_type != "Sub":
        return
    yield difference
    subtracted = difference.inputs[1]
    mean = None if subtracted is None else subtracted.producer()
    if mean is not None and mean.op_type in _SUMS:
        yield mean
    ends = {id(node) for node in chain}
    for use in difference.outputs[0].uses():
        for value in use.node.inputs:
            producer = None if value is None else value.producer()
            if use.node is not square and producer is not None and id(producer) in ends:
                yield use.node
