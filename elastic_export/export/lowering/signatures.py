"""The same operator in an older opset: inputs become attributes, what says nothing is dropped."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from elastic_export.errors import CheckFailed
from elastic_export.export.graph import add_initializer, constant_of, read_static_shape

__all__ = ["lower_signature"]

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


def lower_signature(node: ir.Node, opset: int) -> None:
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
    if node.op_type == "DequantizeLinear" and len(node.inputs) == 2:
        _explicit_zero_point(node)
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


def _explicit_zero_point(node: ir.Node) -> None:
    """Write the zero point that ONNX lets one leave out, and the parsers of TensorRT 8 do not.

    They want as many zero points as there are scales (onnx-tensorrt 8.5,
    builtin_op_importers.cpp).
    """
    codes, scale = node.inputs[0], constant_of(node.inputs[1])
    if codes is None or codes.dtype is None or scale is None:
        return
    assert node.graph is not None
    zeros = np.zeros(scale.shape, dtype=codes.dtype.numpy())
    shape = "x".join(map(str, scale.shape)) or "scalar"
    name = f"zero_point.{codes.dtype.name.lower()}.{shape}"
    node.resize_inputs(3)
    node.replace_input_with(2, add_initializer(node.graph, name, zeros))
