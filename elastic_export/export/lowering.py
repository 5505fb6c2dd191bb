"""Lower a clean graph to the opset that an older runtime reads.

Asking torch's exporter for opset 13 or 17 gives 18, and the general converters fail on these graphs
or write invalid ones. What our FP32 graphs hold is small enough for a table: each operator that
changed between the two opsets is rewritten with operators that have not, and anything else that the
wanted opset does not know is an error that names it. After a lowering, every node is held against
onnx's own schema of the wanted opset.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from elastic_export.errors import CheckFailed
from elastic_export.export.files import load_model, save_model
from elastic_export.export.graph import (
    add_initializer,
    constant_of,
    insert_before,
    read_static_shape,
    replace_node,
    value_shape,
)
from elastic_export.export.simplify import tidy

__all__ = ["LOWEST", "lower", "lower_file"]

LOWEST = 13
"""What TensorRT 8.2 (JetPack 4.6) reads; the first opset with per-channel QuantizeLinear."""

_HARD_SWISH_ALPHA = 1 / 6
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
# Attributes that came later, with the value that says nothing: op -> attribute -> (opset, value).
_NEUTRAL: dict[str, dict[str, tuple[int, object]]] = {
    "AveragePool": {"dilations": (19, None)},
    "BatchNormalization": {"training_mode": (14, 0)},
    "Cast": {"saturate": (19, 1)},
    "DequantizeLinear": {"block_size": (21, 0)},
    "QuantizeLinear": {"saturate": (19, 1), "block_size": (21, 0), "output_dtype": (21, 0)},
    "Reshape": {"allowzero": (14, 0)},
    "ScatterElements": {"reduction": (16, "none")},
    "ScatterND": {"reduction": (16, "none")},
}


def lower(model: ir.Model, opset: int, *, without: Collection[str] = ()) -> list[str]:
    """Rewrite a model to an older opset, in place.

    Args:
        model: What ``export_fp32`` wrote, with static shapes.
        opset: 13 or later; a model that is not newer only loses the operators in ``without``.
        without: Operators the runtime does not know although the opset does, such as
            ``LayerNormalization`` for TensorRT 8.5.

    Returns:
        One sentence for each kind of rewrite, such as ``"25 LayerNormalization were decomposed."``.

    Raises:
        CheckFailed: A node has no form in that opset; it is named, with what can be done.
    """
    if opset < LOWEST:
        raise CheckFailed(
            f"Opset {opset} has no per-channel quantization, and graphs are lowered to {LOWEST} at "
            "the least.",
            f"Use a runtime that reads opset {LOWEST}.",
        )
    counts: dict[str, int] = {}
    for node in list(model.graph):
        first = _FIRST_OPSET.get(node.op_type, 0)
        if first > opset or node.op_type in without:
            rewrite = _DECOMPOSED.get(node.op_type)
            if rewrite is None:
                raise _impossible(node, opset, node.op_type in without)
            rewrite(node)
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    now = model.opset_imports.get("", 0)
    if now > opset:
        for node in model.graph:
            _lower_signature(node, opset)
        model.opset_imports[""] = opset
        for node in model.graph:
            _check(node, opset)
    return [
        f"{count} {op} {'was' if count == 1 else 'were'} decomposed."
        for op, count in sorted(counts.items())
    ]


def lower_file(source: Path, path: Path, opset: int, *, without: Collection[str] = ()) -> None:
    """Write a lowered copy of a file; see :func:`lower`."""
    model = load_model(source)
    lower(model, opset, without=without)
    tidy(model)
    save_model(model, path)


def _impossible(node: ir.Node, opset: int, unknown: bool) -> CheckFailed:
    reason = "the runtime does not know" if unknown else f"opset {opset} does not have"
    return CheckFailed(
        f'The node "{node.name}" is a {node.op_type}, which {reason}, and no rewrite of it is '
        "known.",
        "Choose a target with a newer runtime, or a network without this operator.",
    )


def _lower_signature(node: ir.Node, opset: int) -> None:
    """Move inputs to attributes, and drop attributes that came later and say nothing."""
    if node.domain:
        return
    for name, (since, neutral) in _NEUTRAL.get(node.op_type, {}).items():
        attribute = node.attributes.get(name)
        if attribute is None or opset >= since:
            continue
        value = attribute.value
        ones = neutral is None and all(item == 1 for item in value)
        if not ones and value != neutral and not _reshapes_to_no_zero(node):
            raise CheckFailed(
                f'The node "{node.name}" ({node.op_type}) has {name} = {value}, which opset '
                f"{opset} does not have.",
                "Choose a target with a newer runtime.",
            )
        del node.attributes[name]
    if opset >= 18:
        return
    if node.op_type.removeprefix("Reduce") in _REDUCTIONS and node.op_type.startswith("Reduce"):
        _axes_to_attribute(node)
    elif node.op_type == "Split":
        _split_sizes(node)
    elif node.op_type == "Pad" and len(node.inputs) == 4:
        _pad_all_axes(node)
    elif node.op_type == "Resize":
        for name in ("antialias", "keep_aspect_ratio_policy"):
            node.attributes.pop(name, None)


def _reshapes_to_no_zero(node: ir.Node) -> bool:
    """Tell whether ``allowzero`` says nothing, because the shape is known and holds no zero."""
    if node.op_type != "Reshape":
        return False
    shape = constant_of(node.inputs[1])
    return shape is not None and bool((shape != 0).all())


def _axes_to_attribute(node: ir.Node) -> None:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = constant_of(node.inputs[1])
        if axes is None:
            raise CheckFailed(
                f'The node "{node.name}" ({node.op_type}) computes its axes while it runs.',
                "Fix the axes in the network's forward.",
            )
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.reshape(-1)])
        node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)


def _split_sizes(node: ir.Node) -> None:
    """Without ``num_outputs`` a Split is even; say the sizes where it is not."""
    if node.attributes.pop("num_outputs", None) is None:
        return
    sizes = []
    axis = node.attributes.get_int("axis", 0)
    for output in node.outputs:
        shape = read_static_shape(output)
        sizes.append(None if shape is None else shape[axis])
    if len(set(sizes)) > 1 and None not in sizes:
        assert node.graph is not None
        split = add_initializer(node.graph, f"{node.name}.split", np.array(sizes, dtype=np.int64))
        node.resize_inputs(2)
        node.replace_input_with(1, split)


def _pad_all_axes(node: ir.Node) -> None:
    """Write the padding of some axes as that of all."""
    shape = read_static_shape(node.outputs[0])
    pads, axes = constant_of(node.inputs[1]), constant_of(node.inputs[3])
    if shape is None or pads is None or axes is None:
        raise CheckFailed(
            f'The node "{node.name}" (Pad) computes what it pads while it runs.',
            "Fix the padding in the network's forward.",
        )
    rank, picked = len(shape), [int(axis) % len(shape) for axis in axes.reshape(-1)]
    full = np.zeros(2 * rank, dtype=np.int64)
    full[picked] = pads[: len(picked)]
    full[[rank + axis for axis in picked]] = pads[len(picked) :]
    assert node.graph is not None
    node.replace_input_with(1, add_initializer(node.graph, f"{node.name}.pads", full))
    node.resize_inputs(3)


def _constant(node: ir.Node, label: str, value: float) -> ir.Value:
    assert node.graph is not None
    return add_initializer(node.graph, f"{node.name}.{label}", np.array(value, dtype=np.float32))


def _step(
    node: ir.Node,
    op: str,
    inputs: list[ir.Value | None],
    label: str,
    shape: ir.Shape | None,
    attributes: dict[str, int | float | str] | None = None,
) -> ir.Value:
    kind = node.outputs[0].dtype or ir.DataType.FLOAT
    return insert_before(
        node,
        op,
        inputs,
        name=f"{node.name}.{label}",
        dtype=kind,
        shape=shape,
        attributes=dict(attributes or {}),
    )


def _layer_norm(node: ir.Node) -> None:
    """Mean, variance, root, scale: LayerNormalization over the axes from ``axis`` on."""
    x = node.inputs[0]
    assert x is not None
    shape = read_static_shape(x)
    if shape is None:
        raise CheckFailed(
            f'The node "{node.name}" (LayerNormalization) reads a tensor of unknown shape.',
            "Export with a fixed batch size.",
        )
    axis = node.attributes.get_int("axis", -1) % len(shape)
    axes = list(range(axis, len(shape)))
    mean_shape = ir.Shape([1 if i in axes else size for i, size in enumerate(shape)])
    whole = value_shape(x)

    def mean(value: ir.Value, label: str) -> ir.Value:
        made = _step(node, "ReduceMean", [value], label, mean_shape, {"keepdims": 1})
        producer = made.producer()
        assert producer is not None
        assert node.graph is not None
        name = "axes." + "_".join(map(str, axes))
        picked = add_initializer(node.graph, name, np.array(axes, dtype=np.int64))
        producer.resize_inputs(2)
        producer.replace_input_with(1, picked)
        return made

    centred = _step(node, "Sub", [x, mean(x, "mean")], "centred", whole)
    squared = _step(node, "Mul", [centred, centred], "squared", whole)
    epsilon = _constant(node, "epsilon", node.attributes.get_float("epsilon", 1e-5))
    shifted = _step(node, "Add", [mean(squared, "variance"), epsilon], "shifted", mean_shape)
    root = _step(node, "Sqrt", [shifted], "root", mean_shape)
    result = _step(node, "Div", [centred, root], "normal", whole)
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


_DECOMPOSED: dict[str, Callable[[ir.Node], None]] = {
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_norm,
}
_FIRST_OPSET = {
    op: min(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op)
    for op in ("BitwiseAnd", "CastLike", "GridSample", "Mish", "Trilu", *_DECOMPOSED)
}


def _check(node: ir.Node, opset: int) -> None:
    """Hold one node against the schema that the opset has for its operator."""
    if node.domain:
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError as error:
        raise _impossible(node, opset, False) from error
    unknown = sorted(set(node.attributes) - set(schema.attributes))
    if unknown or len(node.inputs) > schema.max_input:
        what = f"the attribute {unknown[0]}" if unknown else f"{len(node.inputs)} inputs"
        raise CheckFailed(
            f'The node "{node.name}" ({node.op_type}) has {what}, which opset {opset} does not '
            "know.",
            "Choose a target with a newer runtime.",
        )
