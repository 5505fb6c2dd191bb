"""How much of what flows through a network lies outside the ranges of its record.

A value outside is clipped to the largest integer. Few clipped values are wanted (percentile and
entropy calibration choose them); many, or on one site alone, mean that the calibration images were
not like the ones that come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from elastic_export.export.files import load_model
from elastic_export.export.graph import nodes_by_name
from elastic_export.export.products import scalar_behind
from elastic_export.export.running import probe
from elastic_export.export.table import ExportTable
from elastic_export.export.written import nodes_of, reading_of
from elastic_export.quantize.record import AttentionPrecision, QuantizationRecord, Role, Site

__all__ = ["clipped_shares"]


def clipped_shares(
    fp32: Path,
    table: ExportTable,
    record: QuantizationRecord,
    flavour: str,
    images: NDArray[np.float32],
    *,
    attention: AttentionPrecision = "float",
) -> dict[tuple[str, Role], float]:
    """Measure which share of the values that a flavour rounds to INT8 is clipped.

    The values are those of the FP32 file, so a site is judged by itself. Looked at is what INT8
    layers and attention products read.

    Args:
        fp32: The file ``export_fp32`` wrote.
        table: Its export table.
        record: As calibrated; it is placed here as ``emit`` places it.
        flavour: Name of an INT8 flavour.
        images: float32 ``(B, C, H, W)``; a fixed batch size is served that many at a time.
        attention: As given to ``emit``.

    Returns:
        Module and role to the share, 0 to 1, in the order of the network's layers.

    Raises:
        CheckFailed: The file cannot be run, or misses a layer of the table.
        UserError: The file cannot be read, or the flavour is unknown.
    """
    placed = record.placed(flavour, attention=attention)
    asymmetric = flavour == "ort-cpu"
    places = {
        (site.module, site.role): (name, site, factor)
        for name, site, factor in _sites(load_model(fp32).graph, table, placed)
    }
    clipped: Counter[tuple[str, Role]] = Counter()
    total: Counter[tuple[str, Role]] = Counter()
    for found in probe(fp32, [name for name, _, _ in places.values()], images):
        for key, (name, site, factor) in places.items():
            low, high = _bounds(site, asymmetric)
            values = found[name] / factor
            clipped[key] += int(np.count_nonzero((values < low) | (values > high)))
            total[key] += values.size
    return {key: clipped[key] / total[key] for key in places}


def _bounds(site: Site, asymmetric: bool) -> tuple[float, float]:
    """Return the range outside of which a value is clipped: half a step beyond the last integer."""
    if asymmetric:
        scale, zero = site.affine_u8()
        return float(scale) * (-zero - 0.5), float(scale) * (255 - zero + 0.5)
    reach = float(np.max(site.amax)) * (1 + 0.5 / 127)
    return -reach, reach


def _sites(
    graph: ir.Graph, table: ExportTable, record: QuantizationRecord
) -> Iterator[tuple[str, Site, float]]:
    """Yield value, site and what the value is a multiple of, for every INT8 activation."""
    nodes = nodes_by_name(graph)
    quantized = set(record.quantized_modules())
    for entry in table.entries.values():
        if entry.module not in quantized:
            continue
        (node,) = nodes_of(nodes, entry)
        yield reading_of(node, entry).value, record.site(entry.module, "input"), 1.0
    attentions = set(record.int8_attentions())
    for attention in table.attentions:
        if attention.module not in attentions:
            continue
        first, second = nodes[attention.first], nodes[attention.second]
        operands: tuple[tuple[ir.Value | None, Role], ...] = (
            (first.inputs[0], "bmm_a"),
            (first.inputs[1], "bmm_b"),
            (second.inputs[0], "probs"),
            (second.inputs[1], "value"),
        )
        for value, role in operands:
            assert value is not None
            scaled = abs(scalar_behind(value)) if role in ("bmm_a", "bmm_b") else 1.0
            yield str(value.name), record.site(attention.module, role), scaled
