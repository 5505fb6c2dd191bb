"""The check that a file computes what torch computes, and where it begins not to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from elastic_export.errors import CheckFailed
from elastic_export.export.bisect import first_bad_layer
from elastic_export.export.running import run_onnx
from elastic_export.export.table import ExportTable

__all__ = ["check_parity"]


def check_parity(
    path: Path,
    inputs: NDArray[np.float32],
    reference: NDArray[np.float32],
    tolerance: float,
    *,
    module: nn.Module | None = None,
    table: ExportTable | None = None,
) -> dict[str, Any]:
    """Check that ONNX Runtime computes what torch computed.

    Args:
        path: The ONNX file; a fixed batch size is served image by image.
        inputs: float32 ``(B, C, H, W)``.
        reference: Logits ``(B, classes)`` of the same inputs.
        tolerance: Largest difference allowed, relative to the largest magnitude in ``reference``.
        module: The network that made ``reference``; with it and ``table``, a failure names the
            first layer that differs.
        table: The export table of the FP32 file this one came from.

    Returns:
        ``{"relative_error": 4e-07, "tolerance": 1e-05, "top1_agreement": 1.0}``.

    Raises:
        CheckFailed: The difference is larger, not finite, or the shapes differ.
    """
    logits = run_onnx(path, inputs)
    name = Path(path).name
    if logits.shape != reference.shape:
        raise CheckFailed(
            f"{name} gives logits of shape {logits.shape} where {reference.shape} is expected.",
            "Compare the exported module with the one that made the reference.",
        )
    scale = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
    differences = np.abs(logits.astype(np.float64) - reference.astype(np.float64))
    error = float(differences.max()) / scale
    agreement = float((logits.argmax(-1) == reference.argmax(-1)).mean())
    if not error <= tolerance:
        where = ""
        if module is not None and table is not None:
            where = " " + _first_bad(path, inputs, tolerance, module, table)
        raise CheckFailed(
            f"{name} differs from torch by {error:.2e} of the largest logit; {tolerance:.2e} is "
            f"allowed.{where}",
            "The network amplifies rounding: leave this precision out for it, or check that the "
            "file was written from this module.",
        )
    return {"relative_error": error, "tolerance": tolerance, "top1_agreement": agreement}


def _first_bad(
    path: Path,
    inputs: NDArray[np.float32],
    tolerance: float,
    module: nn.Module,
    table: ExportTable,
) -> str:
    try:
        bad = first_bad_layer(path, module, table, inputs, tolerance)
    except CheckFailed as error:
        return f"Layers cannot be compared: {error.what}"
    if bad is None:
        return "Each layer keeps to its share; the error adds up on the way."
    return bad.sentence()
