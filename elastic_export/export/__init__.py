"""ONNX files: clean FP32 from a plain module, flavours from a quantization record, and proofs.

One quantization record serves several runtimes that want opposite graphs: ONNX Runtime's CPU
kernels want asymmetric activations and integer biases, TensorRT refuses both. So the module is
exported once, clean and in FP32 (``export_fp32``), and each flavour is written from that file, the
export table and the record (``emit``). What was written is then checked on the file itself
(``check_*``).
"""

from elastic_export.export.bisect import BadLayer, first_bad_layer
from elastic_export.export.clipping import clipped_shares
from elastic_export.export.emit import EmitReport, emit
from elastic_export.export.fp32 import export_fp32
from elastic_export.export.fused import fused_ops, integer_products
from elastic_export.export.half import emit_fp16
from elastic_export.export.layer_errors import LayerError, layer_errors
from elastic_export.export.overflow import check_activations, check_half_range
from elastic_export.export.parity import check_parity
from elastic_export.export.patterns import check_pattern_onnx
from elastic_export.export.running import probe, run_onnx
from elastic_export.export.table import Exported, ExportTable, TableEntry
from elastic_export.export.verify import check_finite, check_no_weight_slices, check_opset

__all__ = [
    "BadLayer",
    "EmitReport",
    "ExportTable",
    "Exported",
    "LayerError",
    "TableEntry",
    "check_activations",
    "check_finite",
    "check_half_range",
    "check_no_weight_slices",
    "check_opset",
    "check_parity",
    "check_pattern_onnx",
    "clipped_shares",
    "emit",
    "emit_fp16",
    "export_fp32",
    "first_bad_layer",
    "fused_ops",
    "integer_products",
    "layer_errors",
    "probe",
    "run_onnx",
]
