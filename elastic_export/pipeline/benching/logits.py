"""Whether a runner computes what the machine that made the bundle did."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.numpy import load_file

from elastic_export.engine.bundle import Bundle
from elastic_export.engine.runners import Runner
from elastic_export.measure.board.sample import compare_logits
from elastic_export.pipeline.exporting import TOLERANCE
from elastic_export.pipeline.measuring import in_batches, predictor

__all__ = ["compared"]


def compared(
    bundle: Bundle, precision: str, runner: Runner, batch_size: int, *, gpu: bool
) -> dict[str, Any] | None:
    """Run the sample images and compare the logits with those in the bundle.

    Args:
        bundle: With or without a sample.
        precision: Of the model.
        runner: What runs it.
        batch_size: Of the graph.
        gpu: Whether it runs on a GPU. There ONNX Runtime and TensorRT compute FP32 products in
            TF32, which has the ten bits of FP16's mantissa (NVIDIA's documentation of TensorRT,
            ``BuilderFlag.TF32``), so FP32 is held against the tolerance of FP16.

    Returns:
        ``images``, ``top1_agreement``, ``max_relative_error``, ``tolerance``, ``ok``; None where
        the bundle has no sample of that precision.

    Raises:
        UserError: The runner does not take the sample's images.
        CheckFailed: It could not run.
    """
    sample = bundle.manifest.sample
    if sample is None:
        return None
    tensors = load_file(bundle.folder / sample.file)
    expected = tensors.get(f"logits.{precision}")
    if expected is None or "input" not in tensors:
        return None
    tolerance = sample.tolerance.get(precision, 0.0)
    if gpu and precision == "fp32":
        tolerance = max(tolerance, TOLERANCE["fp16"])
    images = torch.from_numpy(tensors["input"])
    found = in_batches(predictor(runner, batch_size), images, batch_size).float()
    return compare_logits(found.tolist(), expected.tolist(), tolerance)
