"""The kernels that TensorRT would make of a clean FP32 file, one entry each.

A convolution or product takes its bias, activation and one residual addition along; LayerNorm,
Softmax and pooling are kernels; an attention is one kernel with everything between its products,
or three; chains of element-wise operators and of movements are one kernel each. Reshapes and slices
cost nothing by themselves. NVIDIA documents these fusions for TensorRT; which ones a builder really
makes is known only on the device, so what follows from this list is an estimate.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from elastic_export.config.fused_layer import FusedLayer
from elastic_export.errors import UserError
from elastic_export.export.files import load_model
from elastic_export.export.fusing import Fusion
from elastic_export.export.graph import read_static_shape
from elastic_export.export.simplify import infer_shapes

__all__ = ["fused_layers", "quantized_nodes"]

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm")


def fused_layers(path: Path, *, turing: bool = True) -> list[FusedLayer]:
    """Read a plain FP32 file with static shapes and fuse it.

    Args:
        path: What ``export_fp32`` wrote, at any opset.
        turing: Fuse as TensorRT does from compute capability 7.5 on: an attention whose heads allow
            it (16 to 256 values, a multiple of 8) is one kernel, and a product takes any activation
            along. Otherwise an attention is two products and a Softmax, and ReLU and Clip are the
            only activations that a product takes.

    Raises:
        UserError: The file cannot be read, is a flavour other than the plain one, or leaves a
            dimension open.
    """
    model = load_model(path)
    _refuse_flavours(model.graph, path)
    _refuse_open(model.graph, path)
    infer_shapes(model)
    return Fusion(model.graph, turing).layers(path)


def quantized_nodes(path: Path) -> set[str]:
    """Name the Conv, MatMul and Gemm nodes whose weight a file stores in INT8.

    Raises:
        UserError: The file cannot be read.
    """
    found = set()
    for node in load_model(path).graph:
        if node.op_type in ("Conv", "MatMul", "Gemm") and len(node.inputs) > 1:
            makers = [value.producer() for value in node.inputs[:2] if value is not None]
            ops = [maker.op_type if maker is not None else "" for maker in makers]
            if ops.count("DequantizeLinear") == 2:
                found.add(str(node.name))
    return found


def _refuse_flavours(graph: ir.Graph, path: Path) -> None:
    """A flavour's layers would be counted with their Q/DQ and casts, which the estimate adds."""
    ops = {node.op_type for node in graph}
    what = ""
    if any(op in ops for op in _QUANTIZED):
        what = "an INT8 flavour"
    elif any(value.dtype == ir.DataType.FLOAT16 for value in graph.initializers.values()):
        what = "an FP16 flavour"
    elif any(node.domain not in ("", "ai.onnx") for node in graph):
        what = "a flavour with operators of ONNX Runtime"
    if what:
        raise UserError(
            f"{path} is {what}, and an estimate is made from the plain FP32 file.",
            "Give the plain file it was written from (with --precision int8 or fp16 for what it "
            "would run in), or the bundle, which holds the right ones.",
        )


def _refuse_open(graph: ir.Graph, path: Path) -> None:
    for value in graph.inputs:
        if read_static_shape(value) is None:
            shape = "unknown" if value.shape is None else f"({', '.join(map(str, value.shape))})"
            raise UserError(
                f'The input "{value.name}" of {path} has the shape {shape}, which leaves '
                "a dimension open, and time depends on it.",
                "Export the network for one fixed batch and image size.",
            )
