"""Operators written with older ones: the same function, for runtimes that do not know them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from elastic_export.errors import CheckFailed
from elastic_export.export.graph import (
    add_initializer,
    constant_of,
    insert_before,
    read_static_shape,
    replace_node,
    value_shape,
)

__all__ = ["DECOMPOSED", "FIRST_OPSET"]

_HARD_SWISH_ALPHA = 1 / 6


def _constant(node: ir.Node, label: str, value: float, kind: ir.DataType | None = None) -> ir.Value:
    assert node.graph is not None
    kind = kind or node.outputs[0].dtype or ir.DataType.FLOAT
    name = f"{label}.{value!r}.{kind.name.lower()}"
    return add_initializer(node.graph, name, np.asarray(value, dtype=kind.numpy()))


def _step(
    node: ir.Node,
    op: str,
    inputs: list[ir.Value | None],
    label: str,
    shape: ir.Shape | None,
    attributes: dict[str, int | float | str] | None = None,
) -> ir.Value:
    """Add one node before ``node``, in the type of its first input."""
    first = inputs[0]
    kind = (None if first is None else first.dtype) or node.outputs[0].dtype or ir.DataType.FLOAT
    return insert_before(
        node,
        op,
        inputs,
        name=f"{node.name or node.outputs[0].name}.{label}",
        dtype=kind,
        shape=shape,
        attributes=dict(attributes or {}),
    )


def _cast(node: ir.Node, value: ir.Value, label: str, kind: ir.DataType) -> ir.Value:
    return insert_before(
        node,
        "Cast",
        [value],
        name=f"{node.name or node.outputs[0].name}.{label}",
        dtype=kind,
        shape=value_shape(value),
        attributes={"to": int(kind)},
    )


def _reduce(
    node: ir.Node, op: str, value: ir.Value, axes: Sequence[int], label: str, shape: ir.Shape | None
) -> ir.Value:
    """Reduce over axes given as opset 18 does; the signature is lowered with all others."""
    made = _step(node, op, [value], label, shape, {"keepdims": 1})
    producer = made.producer()
    assert producer is not None
    assert node.graph is not None
    name = "axes." + "_".join(map(str, axes))
    picked = add_initializer(node.graph, name, np.array(axes, dtype=np.int64))
    producer.resize_inputs(2)
    producer.replace_input_with(1, picked)
    return made


def _layer_norm(node: ir.Node) -> None:
    """Mean, variance, root, scale: LayerNormalization over the axes from ``axis`` on.

    An FP16 graph gets Casts round the part that squares, which is what ``stash_type`` FLOAT said.
    In an FP32 graph the same nodes are pinned by name (see ``pins``).
    """
    x = node.inputs[0]
    assert x is not None
    sizes = read_static_shape(x)
    if sizes is None:
        raise CheckFailed(
            f'The node "{node.name}" (LayerNormalization) reads a tensor of unknown shape.',
            "Export with a fixed batch size.",
        )
    axis = node.attributes.get_int("axis", -1) % len(sizes)
    axes = list(range(axis, len(sizes)))
    mean_shape = ir.Shape([1 if i in axes else size for i, size in enumerate(sizes)])
    whole = value_shape(x)
    kind = x.dtype or ir.DataType.FLOAT
    half = kind == ir.DataType.FLOAT16
    if half:
        x = _cast(node, x, "single", ir.DataType.FLOAT)
    mean = _reduce(node, "ReduceMean", x, axes, "mean", mean_shape)
    centred = _step(node, "Sub", [x, mean], "centred", whole)
    squared = _step(node, "Mul", [centred, centred], "squared", whole)
    variance = _reduce(node, "ReduceMean", squared, axes, "variance", mean_shape)
    # A float32 epsilon: 1e-12 is zero in FP16.
    epsilon = _constant(
        node, "epsilon", node.attributes.get_float("epsilon", 1e-5), ir.DataType.FLOAT
    )
    shifted = _step(node, "Add", [variance, epsilon], "shifted", mean_shape)
    root = _step(node, "Sqrt", [shifted], "root", mean_shape)
    result = _step(node, "Div", [centred, root], "normal", whole)
    if half:
        result = _cast(node, result, "half", kind)
    result = _step(node, "Mul", [result, node.inputs[1]], "scaled", whole)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = _step(node, "Add", [result, node.inputs[2]], "biased", whole)
    replace_node(node, result)


def _hard_swish(node: ir.Node) -> None:
    """``x * HardSigmoid(x)`` with a slope of one sixth."""
    shape = value_shape(node.outputs[0])
    slope: dict[str, int | float | str] = {"alpha": _HARD_SWISH_ALPHA, "beta": 0.5}
    gate = _step(node, "HardSigmoid", [node.inputs[0]], "gate", shape, slope)
    replace_node(node, _step(node, "Mul", [node.inputs[0], gate], "gated", shape))


def _gelu(node: ir.Node) -> None:
    """``x * (1 + erf(x / sqrt 2)) / 2``; the tanh form where the node asks for it."""
    x, shape = node.inputs[0], value_shape(node.outputs[0])
    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = _step(node, "Mul", [x, _step(node, "Mul", [x, x], "square", shape)], "cube", shape)
        small = _step(node, "Mul", [cube, _constant(node, "c", 0.044715)], "small", shape)
        inner = _step(node, "Add", [x, small], "inner", shape)
        scale = _constant(node, "root", float(np.sqrt(2 / np.pi)))
        inner = _step(node, "Mul", [inner, scale], "angle", shape)
        curve = _step(node, "Tanh", [inner], "tanh", shape)
    else:
        inner = _step(
            node, "Mul", [x, _constant(node, "root", float(np.sqrt(0.5)))], "inner", shape
        )
        curve = _step(node, "Erf", [inner], "erf", shape)
    raised = _step(node, "Add", [curve, _constant(node, "one", 1.0)], "raised", shape)
    half = _step(node, "Mul", [x, _constant(node, "half", 0.5)], "half", shape)
    replace_node(node, _step(node, "Mul", [half, raised], "gelu", shape))


def _reduce_l2(node: ir.Node) -> None:
    """Square, sum, root: the parser makes these three itself, and names the last one only.

    A layer without the node's name cannot be pinned to FP32, and a sum of squares overflows FP16.
    """
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    sizes = read_static_shape(x)
    if sizes is None or axes is None or not node.attributes.get_int("keepdims", 1):
        return  # The operator itself is known; only its precision cannot be pinned.
    picked = [int(axis) % len(sizes) for axis in axes.reshape(-1)]
    squared = _step(node, "Mul", [x, x], "squared", value_shape(x))
    total = _reduce(node, "ReduceSum", squared, picked, "sum", value_shape(output))
    replace_node(node, _step(node, "Sqrt", [total], "root", value_shape(output)))


def _reciprocal(node: ir.Node) -> None:
    x = node.inputs[0]
    one = _constant(node, "one", 1.0)
    replace_node(node, _step(node, "Div", [one, x], "inverse", value_shape(node.outputs[0])))


DECOMPOSED: dict[str, Callable[[ir.Node], None]] = {
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_norm,
    "Reciprocal": _reciprocal,
    "ReduceL2": _reduce_l2,
}

_LATER = (
    *("BitwiseAnd", "CastLike", "Gelu", "GridSample"),
    *("HardSwish", "LayerNormalization", "Mish", "Trilu"),
)
FIRST_OPSET: dict[str, int] = {
    op: min(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op)
    for op in _LATER
} | {
    # Older than any opset we write, but not for the parsers that read the old ones: TensorRT 8.2
    # (opset 13) lacks Reciprocal, and up to 8.6 (17) typing is weak (see _reduce_l2).
    "Reciprocal": 17,
    "ReduceL2": 18,
}
"""The opset from which on an operator may stay as it is."""
