"""What ONNX Runtime really runs: the operators of its optimised graph."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnxruntime as ort

from elastic_export.errors import CheckFailed
from elastic_export.export.files import load_proto

__all__ = ["INTEGER_OPS", "fused_ops", "integer_products"]

INTEGER_OPS = (
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
)
"""Operators of ONNX Runtime that multiply integers."""


def fused_ops(path: Path, threads: int = 1) -> dict[str, int]:
    """Count the operators of the graph that ONNX Runtime's CPU provider executes.

    The session has default options but for the number of threads, as in deployment.

    Args:
        path: An ONNX file.
        threads: Intra-op threads.

    Returns:
        Operator name to count, most frequent first.

    Raises:
        CheckFailed: ONNX Runtime does not load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.optimized_model_filepath = str(optimised)
        try:
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise CheckFailed(
                f"ONNX Runtime cannot load {Path(path).name}: {first}.",
                "Check that the file is complete.",
            ) from error
        nodes = load_proto(optimised).graph.node
    return dict(Counter(node.op_type for node in nodes).most_common())


def integer_products(ops: dict[str, int]) -> int:
    """Sum up how many products of ``fused_ops`` run on integers."""
    return sum(ops.get(name, 0) for name in INTEGER_OPS)
