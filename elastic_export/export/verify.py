"""Post-conditions of an export: each check looks at the file itself and fails loudly.

Every function returns a small JSON-able finding for the report and raises ``CheckFailed`` with the
layer's name where the file is not what it should be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from elastic_export.errors import CheckFailed, UserError
from elastic_export.export.attention import PARTS
from elastic_export.export.files import load_model, load_proto
from elastic_export.export.graph import constant_of, nodes_by_name
from elastic_export.export.table import ExportTable, TableEntry

__all__ = [
    "check_finite",
    "check_no_weight_slices",
    "check_opset",
    "check_parity",
    "check_pattern_onnx",
    "run_onnx",
]

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


def check_parity(
    path: Path,
    inputs: NDArray[np.float32],
    reference: NDArray[np.float32],
    tolerance: float,
) -> dict[str, Any]:
    """Check that ONNX Runtime computes what torch computed.

    Args:
        path: The ONNX file; a fixed batch size is served image by image.
        inputs: float32 ``(B, C, H, W)``.
        reference: Logits ``(B, classes)`` of the same inputs.
        tolerance: Largest difference allowed, relative to the largest magnitude in ``reference``.

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
    error = float(np.abs(logits.astype(np.float64) - reference.astype(np.float64)).max()) / scale
    agreement = float((logits.argmax(-1) == reference.argmax(-1)).mean())
    if not error <= tolerance:
        raise CheckFailed(
            f"{name} differs from torch by {error:.2e} of the largest logit; {tolerance:.2e} is "
            "allowed.",
            "The network amplifies rounding: leave this precision out for it, or check that the "
            "file was written from this module.",
        )
    return {"relative_error": error, "tolerance": tolerance, "top1_agreement": agreement}


def run_onnx(path: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a file in ONNX Runtime on the CPU with default options, one thread.

    A graph with a fixed batch size gets that many images at a time.

    Raises:
        CheckFailed: ONNX Runtime does not load the file or does not take the input.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (source,) = session.get_inputs()
        batch = source.shape[0] if isinstance(source.shape[0], int) else len(inputs)
        parts = [
            session.run(None, {source.name: inputs[start : start + batch]})[0]
            for start in range(0, len(inputs), batch)
        ]
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckFailed(
            f"ONNX Runtime cannot run {Path(path).name}: {first}.",
            "Check the input's shape, and that the file is complete.",
        ) from error
    return np.concatenate(parts)


def check_pattern_onnx(
    path: Path, table: ExportTable, patterns: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Prove an N:M pattern on the weights as the file stores them, FP32, FP16 or INT8.

    Groups of M lie along the axis that the *node* sums over: Conv axis 1 at each kernel position,
    MatMul axis 0 of ``(K, N)``, Gemm by transB. The weight is looked for through
    DequantizeLinear, QuantizeLinear, Cast and Transpose.

    Args:
        path: A file of any flavour.
        table: The export table of the FP32 file it came from.
        patterns: Parameter name to pattern, for example ``{"blocks.0.mlp.fc1.weight": "2:4"}``.

    Returns:
        For each parameter the pattern, the stored type, the share of values other than zero, and
        the number of groups looked at.

    Raises:
        CheckFailed: A group holds more than N values, K is no multiple of M, or the weight is not
            in the file; the message names the layer.
        UserError: A pattern is not of the form N:M, or a parameter is unknown.
    """
    nodes = nodes_by_name(load_model(path).graph)
    findings: dict[str, dict[str, Any]] = {}
    for parameter, pattern in patterns.items():
        entry = table.entries.get(parameter)
        if entry is None:
            raise UserError(
                f'The export table has no parameter "{parameter}".',
                "Name the weight of a Linear or Conv2d of the exported module.",
            )
        n, m = _parse(pattern)
        weight = _summed_last(nodes, entry)
        size = weight.shape[-1]
        if size % m:
            raise CheckFailed(
                f'"{parameter}" is summed over {size} values, which is no multiple of {m}.',
                f"Leave that layer dense, or choose widths that are multiples of {m}.",
            )
        groups = weight.reshape(-1, m)
        full = np.count_nonzero(groups, axis=1) > n
        if full.any():
            raise CheckFailed(
                f'"{parameter}" is not {pattern} in {Path(path).name}: {int(full.sum())} of '
                f"{len(groups)} groups hold more than {n} values.",
                "Sparsify after folding and before quantizing, and change no weight afterwards.",
            )
        findings[parameter] = {
            "pattern": pattern,
            "dtype": str(weight.dtype),
            "density": round(float(np.count_nonzero(weight)) / weight.size, 6),
            "groups": len(groups),
        }
    return findings


def _parse(pattern: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    if match is None or not 0 < int(match[1]) <= int(match[2]):
        raise UserError(
            f'"{pattern}" is no N:M pattern.', 'Write it like "2:4": two of each four values.'
        )
    return int(match[1]), int(match[2])


def _summed_last(nodes: Mapping[str, ir.Node], entry: TableEntry) -> NDArray:
    """Return the stored weight of a layer, output channels first and the summed axis last."""
    own = nodes.get(entry.node)
    if own is not None:
        return _weight_of(own, entry)
    parts = [nodes.get(f"{entry.node}.{part}") for part in PARTS]
    found = [_weight_of(part, entry) for part in parts if part is not None]
    if len(found) != len(PARTS):
        raise CheckFailed(
            f'The file has no node for the layer "{entry.module}".',
            "Use the export table of the file this one was made from.",
        )
    return np.concatenate(found)


def _weight_of(node: ir.Node, entry: TableEntry) -> NDArray:
    weight = None
    for value in node.inputs[1:]:
        weight = _stored(value)
        if weight is not None and weight.ndim >= 2:
            break
    if weight is None or weight.ndim < 2:
        raise CheckFailed(
            f'The weight of the layer "{entry.module}" is not stored as a constant.',
            "Export the extracted module, whose weights are initializers.",
        )
    if node.op_type == "Conv":
        return np.moveaxis(weight, 1, -1)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0):
        return weight
    return np.moveaxis(weight, -2, -1)


def _stored(value: ir.Value | None) -> NDArray | None:
    """Return the constant behind a value, turned the way the node sees it."""
    array = constant_of(value)
    if array is not None or value is None:
        return array
    node = value.producer()
    if node is None or not node.inputs:
        return None
    if node.op_type in ("DequantizeLinear", "QuantizeLinear", "Cast"):
        return _stored(node.inputs[0])
    if node.op_type == "Transpose":
        inner = _stored(node.inputs[0])
        if inner is None:
            return None
        order = node.attributes.get("perm")
        return inner.transpose(order.as_ints() if order is not None else None)
    return None
