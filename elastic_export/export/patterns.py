"""The proof that an N:M pattern holds on the weights as a file stores them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from elastic_export.errors import CheckFailed, UserError
from elastic_export.export.files import load_model
from elastic_export.export.graph import nodes_by_name
from elastic_export.export.table import ExportTable
from elastic_export.export.written import nodes_of, stored_weight

__all__ = ["check_pattern_onnx"]


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
        parts = nodes_of(nodes, entry)
        weight = np.concatenate([stored_weight(part, entry) for part in parts])
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
