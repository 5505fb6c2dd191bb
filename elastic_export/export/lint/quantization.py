"""Rules for Q/DQ: what TensorRT asks of zero points, scales, types and places."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from elastic_export.export.graph import constant_of
from elastic_export.export.lint.constants import constant_behind
from elastic_export.export.lint.findings import Context, Finding, Rule
from elastic_export.export.lowering.weights import INT8_WEIGHTS

__all__ = ["QUANTIZATION_RULES"]

_HALF_SCALES = 19
_UNSIGNED = (ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT4)


def _pairs(c: Context) -> Iterator[ir.Node]:
    return (n for n in c.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear"))


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _codes(node: ir.Node) -> ir.DataType | None:
    """The integer type of a Q/DQ node."""
    if node.op_type == "DequantizeLinear":
        value = node.inputs[0]
        return None if value is None else value.dtype
    zero = _input(node, 2)
    # Without a zero point ONNX says UINT8, unless the output_dtype of opset 21 says otherwise.
    chosen = node.attributes.get_int("output_dtype", 0)
    return zero.dtype if zero is not None else ir.DataType(chosen or ir.DataType.UINT8)


def integer_types(c: Context) -> Iterator[Finding]:
    """UINT8 anywhere, and INT32 biases, which no release of TensorRT reads."""
    for node in _pairs(c):
        codes, constant = _codes(node), constant_of(node.inputs[0])
        if codes in _UNSIGNED and c.holds("refuses_uint8"):
            what = "weights" if constant is not None else "activations"
            yield c.finding(
                node,
                f"It has UINT8 {what}; TensorRT reads INT8.",
                c.export_instead,
                fact="refuses_uint8",
            )
        elif codes == ir.DataType.INT32 and c.holds("refuses_int32_bias"):
            yield c.finding(
                node,
                "It reads INT32, as a quantized bias does.",
                f"Leave biases in float. {c.export_instead}",
                fact="refuses_int32_bias",
            )
        elif (
            codes == ir.DataType.UINT8 and constant is not None and c.holds("slower_uint8_weights")
        ):
            yield c.finding(
                node,
                "Its weights are UINT8, for which the CPU has no fast product.",
                "Store weights as INT8: emit the flavour ort-cpu.",
                "slower",
                fact="slower_uint8_weights",
            )


def zero_points(c: Context) -> Iterator[Finding]:
    """Zero points other than zero, or missing where the parser wants them."""
    for node in _pairs(c):
        value = _input(node, 2)
        if value is None:
            if node.op_type == "DequantizeLinear" and c.holds("needs_zero_point_input"):
                yield c.finding(
                    node,
                    "It has no zero point, and this parser wants one for each scale.",
                    "Lower the file to the opset of this target, which writes it.",
                    fact="needs_zero_point_input",
                )
            continue
        zeros, scales = constant_of(value), constant_of(node.inputs[1])
        if c.holds("refuses_zero_points") and (zeros is None or zeros.any()):
            what = "computed while the network runs" if zeros is None else "not 0"
            yield c.finding(
                node,
                f"Its zero point is {what}; TensorRT reads symmetric codes only.",
                c.export_instead,
                fact="refuses_zero_points",
            )
        elif zeros is not None and scales is not None and zeros.size != scales.size:
            yield from _uneven(c, node, zeros.size, scales.size)


def _uneven(c: Context, node: ir.Node, zeros: int, scales: int) -> Iterator[Finding]:
    if c.holds("needs_zero_point_input"):
        yield c.finding(
            node,
            f"It has {zeros} zero points and {scales} scales.",
            "Write one zero point for each scale.",
            fact="needs_zero_point_input",
        )


def scales(c: Context) -> Iterator[Finding]:
    """Scales of zero, FP16 scales below opset 19, one scale a channel of an activation."""
    version = c.model.opset_imports.get("", 0)
    for node in _pairs(c):
        value = node.inputs[1]
        array = constant_of(value)
        if array is not None and not (array > 0).all() and c.holds("refuses_scale_zero"):
            yield c.finding(
                node,
                "A scale is zero, negative or no number.",
                "Calibrate again, with images on which no layer is dead.",
                fact="refuses_scale_zero",
            )
        kind = None if value is None else value.dtype
        half = kind == ir.DataType.FLOAT16 and version < _HALF_SCALES
        if half and c.holds("refuses_half_scales_below_19"):
            yield c.finding(
                node,
                f"Its scale is FP16, which is valid from opset {_HALF_SCALES} on; the file has "
                f"{version}.",
                "Emit trt-weak, whose scales are FP32, or use a newer runtime.",
                fact="refuses_half_scales_below_19",
            )
        many = array is not None and array.size > 1
        if many and constant_behind(node.inputs[0]) is None and c.holds("refuses_zero_points"):
            yield c.finding(
                node,
                "It has one scale for each channel of an activation.",
                c.export_instead,
                source="onnx-tensorrt builtin_op_importers.cpp, per axis for weights only",
            )


def stored_weights(c: Context) -> Iterator[Finding]:
    """INT8 initializers where the network definition has no INT8 constants."""
    for node in _pairs(c) if c.holds("refuses_int8_weights") else ():
        stored = constant_of(node.inputs[0])
        if node.op_type == "DequantizeLinear" and stored is not None and stored.dtype == np.int8:
            yield c.finding(
                node,
                "Its weights are stored as INT8, and this release has no INT8 constants.",
                f'Put "{INT8_WEIGHTS}" into "lacks" of this software and write the file again.',
                fact="refuses_int8_weights",
            )


def before_gelu(c: Context) -> Iterator[Finding]:
    """Q/DQ in front of GELU."""
    for node in c.nodes if c.holds("slower_gelu_behind_qdq") else ():
        if node.op_type == "Gelu":
            value = node.inputs[0]
        elif node.op_type == "Erf":
            scaled = node.inputs[0].producer() if node.inputs[0] is not None else None
            value = scaled.inputs[0] if scaled is not None and scaled.inputs else None
        else:
            continue
        before = None if value is None else value.producer()
        if before is not None and before.op_type == "DequantizeLinear":
            yield c.finding(
                node,
                f'GELU reads the quantized "{before.inputs[0].name if before.inputs[0] else ""}", '
                "so it does not fuse with the layer before it.",
                "Leave the output of that layer in float.",
                "slower",
                fact="slower_gelu_behind_qdq",
            )


def int8_device(c: Context) -> Iterator[Finding]:
    """Q/DQ for a device that has no INT8."""
    if c.device is None or "int8" in (c.software.flavours or c.device.flavours):
        return
    first = next(_pairs(c), None)
    if first is not None:
        yield c.finding(
            first,
            f"The file is quantized, and {c.device.title} runs no INT8.",
            "Use FP16 or FP32 there.",
            source="the target's profile, flavours",
        )


QUANTIZATION_RULES: tuple[Rule, ...] = (
    integer_types,
    zero_points,
    scales,
    stored_weights,
    before_gelu,
    int8_device,
)
