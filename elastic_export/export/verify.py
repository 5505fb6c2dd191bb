"""Post-conditions that a file shows without being run; each fails loudly.

Every function returns a small JSON-able finding for the report and raises ``CheckFailed`` with the
layer's name where the file is not what it should be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from elastic_export.errors import CheckFailed
from elastic_export.export.files import load_model, load_proto
from elastic_export.export.graph import constant_of

__all__ = ["check_finite", "check_no_weight_slices", "check_opset"]

WEIGHT_SIZE = 256
"""Constants of fewer values are shapes, indices and scales, not weights."""


def check_opset(path: Path, max_opset: int) -> dict[str, Any]:
    """Check that no operator is newer than the target's parser knows.

    Returns:
        ``{"opset": 20, "max_opset": 20}``.

    Raises:
        CheckFailed: The opset is above ``max_opset``, or the file is no valid ONNX model.
    """
    model = load_proto(path)
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 0)
    if opset > max_opset:
        raise CheckFailed(
            f"{Path(path).name} has opset {opset}, and the target takes {max_opset} at most.",
            f"Export with opset {max_opset}.",
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise CheckFailed(
            f"{Path(path).name} is not a valid ONNX model: {first}.",
            "This is a bug in the emitter; please report it with the model's configuration.",
        ) from error
    return {"opset": opset, "max_opset": max_opset}


def check_no_weight_slices(path: Path) -> dict[str, Any]:
    """Check that no weight is cut or picked from at run time, the mark of an unextracted supernet.

    Returns:
        ``{"weights": 150, "sliced": 0}``.

    Raises:
        CheckFailed: A ``Slice``, ``Gather`` or ``GatherElements`` reads a weight.
    """
    graph = load_model(path).graph
    weights = 0
    for name, value in graph.initializers.items():
        array = constant_of(value)
        if array is None or array.size < WEIGHT_SIZE or array.dtype.kind not in "fi":
            continue
        weights += 1
        for use in value.uses():
            if use.idx == 0 and use.node.op_type in ("Slice", "Gather", "GatherElements"):
                raise CheckFailed(
                    f'The weight "{name}" is read through a {use.node.op_type} node '
                    f'("{use.node.name}").',
                    "Extract the descendant before exporting it; an active supernet is no export.",
                )
    return {"weights": weights, "sliced": 0}


def check_finite(path: Path) -> dict[str, Any]:
    """Check that every floating-point constant is finite.

    Returns:
        ``{"constants": 160}``.

    Raises:
        CheckFailed: One is NaN or infinite; the message names it.
    """
    constants = 0
    for name, value in load_model(path).graph.initializers.items():
        array = constant_of(value)
        if array is None or array.dtype.kind != "f":
            continue
        constants += 1
        if not np.isfinite(array).all():
            raise CheckFailed(
                f'"{name}" holds NaN or infinite values.',
                "Look at the training or the calibration that produced it.",
            )
    return {"constants": constants}
