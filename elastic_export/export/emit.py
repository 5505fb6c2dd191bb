"""Write a flavour: the clean FP32 file and a quantization record become one file for a runtime."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from elastic_export.errors import CheckFailed, UserError, did_you_mean
from elastic_export.export.files import load_model, save_model
from elastic_export.export.layers import Attention, Layer, join, join_attentions
from elastic_export.export.lowering import lower
from elastic_export.export.ort_cpu import write_ort_cpu
from elastic_export.export.simplify import tidy
from elastic_export.export.table import ExportTable
from elastic_export.export.trt import write_trt_strong, write_trt_weak
from elastic_export.quantize.record import AttentionPrecision, QuantizationRecord

__all__ = ["FLAVOURS", "EmitReport", "Flavour", "emit"]

Flavour = Literal["ort-cpu", "ort-trt", "trt-strong", "trt-weak"]

Writer = Callable[[ir.Model, list[Layer], list[Attention]], list[str]]


FLAVOURS: dict[str, Writer] = {
    "ort-cpu": lambda model, layers, _: write_ort_cpu(model, layers),
    "ort-trt": write_trt_weak,
    "trt-strong": write_trt_strong,
    "trt-weak": write_trt_weak,
}


@dataclass(frozen=True)
class EmitReport:
    """What was written.

    Args:
        flavour: Which form.
        path: The file.
        bytes: Its size.
        fp32_bytes: The size of the file it was made from.
        int8: Names of the layers in INT8.
        kept_float: Name of each other layer to the sentence that says why.
        int8_attentions: Names of the modules whose attention products are in INT8.
        notes: One sentence for each rewrite beyond quantization.
    """

    flavour: str
    path: Path
    bytes: int
    fp32_bytes: int
    int8: tuple[str, ...]
    kept_float: dict[str, str]
    notes: tuple[str, ...]
    int8_attentions: tuple[str, ...] = ()

    @property
    def size_ratio(self) -> float:
        """Size relative to the FP32 file."""
        return self.bytes / self.fp32_bytes

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {**asdict(self), "path": str(self.path), "size_ratio": round(self.size_ratio, 4)}


def emit(
    flavour: Flavour,
    fp32: Path,
    table: ExportTable,
    record: QuantizationRecord,
    path: Path,
    *,
    opset: int | None = None,
    without: Collection[str] = (),
    attention: AttentionPrecision = "float",
) -> EmitReport:
    """Write Q/DQ or integer operators from a record into a clean FP32 file.

    Args:
        flavour: ``ort-cpu`` (ONNX Runtime's CPU kernels), ``trt-strong`` (FP16 and symmetric
            Q/DQ for TensorRT with strong typing, and TensorRT-RTX), ``trt-weak`` (FP32 and
            symmetric Q/DQ for TensorRT up to 10) or ``ort-trt`` (the same for ONNX Runtime's
            TensorRT provider).
        fp32: The file ``export_fp32`` wrote.
        table: Its export table.
        record: Taken from the same module.
        path: The file to write; whole or not at all. Weights keep their parameter names, layers
            keep their module names.
        opset: Lower the file to this opset; None leaves it as it is.
        without: Operators the runtime does not know although its opset has them.
        attention: ``int8`` quantizes the operands of attention products, too, where the record
            has their ranges; ``ort-cpu`` leaves them float and says so.

    Raises:
        UserError: Record, table and file do not belong together, or the flavour is unknown.
        CheckFailed: A range is unusable, no layer became INT8, or an attention of the record is
            not in the file.
    """
    if flavour not in FLAVOURS:
        raise UserError(
            f'There is no flavour "{flavour}".', did_you_mean(str(flavour), list(FLAVOURS))
        )
    model = load_model(fp32)
    placed = record.placed(flavour, attention=attention)
    layers = join(model.graph, table, placed)
    # ONNX Runtime's CPU provider has one operator for attention, in floating point.
    fused = flavour == "ort-cpu"
    attentions = [] if fused else join_attentions(model.graph, table, placed)
    int8 = tuple(layer.name for layer in layers if layer.is_int8)
    if not int8:
        raise CheckFailed(
            "The quantization record leaves every layer in floating point.",
            "Use the FP32 or FP16 file, or change what the calibration recipe skips.",
        )
    notes = FLAVOURS[flavour](model, layers, attentions)
    if fused and attention == "int8":
        notes.append("Attention products stay float: this runtime has no INT8 form of them.")
    notes += lower(model, opset or model.opset_imports[""], without=without)
    tidy(model)
    size = save_model(model, path)
    return EmitReport(
        flavour=flavour,
        path=Path(path),
        bytes=size,
        fp32_bytes=Path(fp32).stat().st_size,
        int8=int8,
        kept_float={layer.name: layer.reason for layer in layers if not layer.is_int8},
        notes=tuple(notes),
        int8_attentions=tuple(found.entry.module for found in attentions),
    )
