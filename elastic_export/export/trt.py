"""The flavours for TensorRT: one quantization record, three typings.

``trt-strong`` is an FP16 graph with Q/DQ for strong typing (TensorRT 10 on request, 11 and
TensorRT-RTX always). ``trt-weak`` is an FP32 graph with Q/DQ for TensorRT up to 10 with ``--fp16
--int8``, where the builder chooses FP16 by itself; it can be lowered to opset 13. ``ort-trt`` is
the same form for ONNX Runtime's TensorRT provider.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike

from elastic_export.errors import CheckFailed
from elastic_export.export.half import to_half
from elastic_export.export.layers import Attention, Layer
from elastic_export.export.mha import quantize_attentions
from elastic_export.export.symmetric import write_symmetric

__all__ = ["MIN_OPSET", "write_trt_strong", "write_trt_weak"]

MIN_OPSET = 19
"""The first opset whose QuantizeLinear takes FP16 scales."""


def write_trt_strong(
    model: ir.Model, layers: list[Layer], attentions: list[Attention]
) -> list[str]:
    """Rewrite a clean FP32 model in place, as FP16 with Q/DQ.

    Args:
        model: What ``export_fp32`` wrote, opset 19 or later.
        layers: What ``join`` found in it.
        attentions: What ``join_attentions`` found in it.

    Returns:
        One sentence for each rewrite beyond quantization.

    Raises:
        CheckFailed: The opset is older, or a constant does not fit into FP16.
    """
    opset = model.opset_imports.get("", 0)
    if opset < MIN_OPSET:
        raise CheckFailed(
            f"The flavour trt-strong needs opset {MIN_OPSET} for its FP16 scales, and the file has "
            f"opset {opset}.",
            f"Export with opset {MIN_OPSET} or later.",
        )
    to_half(model)
    return _write(model, layers, attentions, np.float16)


def write_trt_weak(model: ir.Model, layers: list[Layer], attentions: list[Attention]) -> list[str]:
    """Rewrite a clean FP32 model in place, as FP32 with Q/DQ; arguments as in the strong form."""
    return _write(model, layers, attentions, np.float32)


def _write(
    model: ir.Model, layers: list[Layer], attentions: list[Attention], dtype: DTypeLike
) -> list[str]:
    notes = write_symmetric(model, layers, dtype)
    quantize_attentions(model.graph, attentions, dtype)
    if attentions:
        notes.append(f"{len(attentions)} attentions multiply in INT8.")
    return notes
