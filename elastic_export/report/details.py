"""What the page tells of each target: files, accuracies, engines, checks and notes, as plain cells.

Engines come as free-form records, laid out by the keys they have. Of the checks the page shows what
a reader compares; ``report.json`` and the bundle's manifest hold every layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elastic_export.config.result import Accuracy, BuildResult, BundleResult
from elastic_export.report.frames import LatencyRow, latency_rows, targets, where_measured
from elastic_export.report.units import MISSING, count, milliseconds, percent, seconds, size

__all__ = ["Grid", "TargetDetails", "cell", "describe_targets", "flat"]

ENGINE_KEYS = ("status", "runtime", "version", "sm", "layers", "seconds", "bytes")
CHECK_HEADER = (
    "Descendant",
    "Precision",
    "Error against torch",
    "Allowed",
    "Same top-1",
    "2:4 layers",
    "INT8 layers",
    "Fused INT8 operators",
    "Kept in float",
    "Most clipped",
    "Largest value",
    "FP16 headroom, times",
    "Opset",
    "Findings of the lint",
)
SIGNIFICANT = 3


@dataclass(frozen=True)
class Grid:
    """A table of text; empty when it has no rows."""

    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class TargetDetails:
    """One target over all descendants; ``notes`` hold for all of them unless they name one.

    ``board`` is where it was measured, empty for this machine or nowhere; ``latencies`` are those
    of a board, because the final table shows the others; ``estimates`` stand for what was measured
    nowhere.
    """

    name: str
    board: str
    latencies: Grid
    estimates: Grid
    bundles: Grid
    engines: Grid
    checks: Grid
    notes: tuple[str, ...] = field(default=())


def describe_targets(result: BuildResult) -> list[TargetDetails]:
    """Gather what is known of each target, in the order of the result."""
    found = []
    for target in targets(result):
        own = [
            (descendant.name, bundle)
            for descendant in result.descendants
            for bundle in descendant.bundles
            if bundle.target == target
        ]
        board = where_measured(result, target)
        found.append(
            TargetDetails(
                name=target,
                board=board,
                latencies=_latencies(latency_rows(result, target)) if board else Grid(),
                estimates=_estimates(own),
                bundles=_bundles(own),
                engines=_engines(own),
                checks=_checks(own),
                notes=_notes(own),
            )
        )
    return found


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested values by their path: ``{"a": {"b": 1}}`` becomes ``{"a \u203a b": 1}``."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{prefix} \u203a {key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            found |= flat(value, name)
        else:
            found[name] = value
    return found


def cell(value: Any, key: str = "") -> str:
    """Write any JSON value for a reader; durations and sizes by the name of their key."""
    last = key.rpartition(" ")[2]
    if value is None or value == "" or value == [] or value == {}:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) and last in ("seconds", "wall_seconds"):
        return seconds(value)
    if isinstance(value, (int, float)) and last == "bytes":
        return size(value)
    if isinstance(value, float):
        return f"{value:.{SIGNIFICANT}g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(item) for item in value)
    return str(value)


def _latencies(lines: Sequence[LatencyRow]) -> Grid:
    header = (
        "Descendant",
        "Precision",
        "Top-1 %",
        "MACs, hardware",
        "Median, ms",
        "p90, ms",
        "p99, ms",
        "GPU, ms",
        "Energy, mJ",
        "2:4 layers picked",
        "Settled",
        "Marks",
        "Chosen",
    )
    rows = [
        (
            line.descendant,
            line.precision,
            percent(line.top1),
            count(line.hardware_macs),
            milliseconds(line.median_ms),
            milliseconds(line.p90_ms),
            milliseconds(line.p99_ms),
            milliseconds(line.compute_ms),
            MISSING if line.energy_mj is None else f"{line.energy_mj:.3g} {line.energy_is}",
            MISSING
            if line.sparse_picked is None
            else f"{line.sparse_picked} of {line.sparse_eligible} eligible",
            line.status if not line.why else f"{line.status}: {line.why}",
            line.marks or MISSING,
            "yes" if line.chosen else MISSING,
        )
        for line in lines
    ]
    return _without_empty_columns(header, rows)


def _estimates(own: Sequence[tuple[str, BundleResult]]) -> Grid:
    rows = [
        (
            name,
            precision,
            milliseconds(one.ms),
            f"{milliseconds(one.low_ms)} to {milliseconds(one.high_ms)}",
            one.basis,
        )
        for name, bundle in own
        for precision, one in bundle.estimate.items()
    ]
    header = ("Descendant", "Precision", "Estimate, ms", "Range of the estimate, ms", "Constants")
    return Grid(header, tuple(rows)) if rows else Grid()


def _bundles(own: Sequence[tuple[str, BundleResult]]) -> Grid:
    header = ("Descendant", "Files", "Top-1", "Chosen", "Why", "Folder")
    rows = [
        (
            name,
            "\n".join(
                f"{precision}: {file} ({size(bundle.bytes.get(precision))})"
                for precision, file in bundle.files.items()
            ),
            "\n".join(
                f"{precision}: {_top1(value)}" for precision, value in bundle.accuracy.items()
            ),
            bundle.chosen or MISSING,
            bundle.chosen_because or MISSING,
            bundle.folder,
        )
        for name, bundle in own
    ]
    return _without_empty_columns(header, rows)


def _top1(accuracy: Accuracy) -> str:
    text = f"{percent(accuracy.top1)} %"
    return f"{text}, emulated in {accuracy.runner}" if accuracy.how == "emulated" else text


def _engines(own: Sequence[tuple[str, BundleResult]]) -> Grid:
    records = [
        (name, precision, flat(engine))
        for name, bundle in own
        for precision, engine in bundle.engines.items()
    ]
    keys = _ordered(ENGINE_KEYS, (record for _, _, record in records))
    rows = [
        (name, precision, *(cell(record.get(key), key) for key in keys))
        for name, precision, record in records
    ]
    return _without_empty_columns(("Descendant", "Precision", *keys), rows)


def _checks(own: Sequence[tuple[str, BundleResult]]) -> Grid:
    rows = [
        (name, precision, *_check_cells(record))
        for name, bundle in own
        for precision, record in bundle.checks.items()
    ]
    return _without_empty_columns(CHECK_HEADER, rows)


def _check_cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    parity, largest = record.get("parity") or {}, record.get("activations") or {}
    half, clipped = record.get("half") or {}, record.get("clipped") or {}
    patterns = record.get("patterns")
    return (
        cell(parity.get("relative_error")),
        cell(parity.get("tolerance")),
        _share(parity.get("top1_agreement")),
        cell(None if patterns is None else len(patterns)),
        cell(record.get("int8_layers")),
        _fused(record.get("fused_ops") or {}),
        ", ".join(record.get("float_layers") or ()) or MISSING,
        _share(clipped.get("share"), clipped.get("module")),
        cell(largest.get("largest")) + (f", {at}" if (at := largest.get("largest_at")) else ""),
        cell(half.get("headroom")),
        cell((record.get("opset") or {}).get("opset")),
        cell(len(record.get("lint") or ()) or None),
    )


def _fused(ops: Mapping[str, int]) -> str:
    """Name those that ONNX Runtime made of operators between QuantizeLinear and its inverse."""
    found = (f"{n} {op}" for op, n in ops.items() if "QLinear" in op or "Integer" in op)
    return ", ".join(found) or MISSING


def _share(value: float | None, where: str | None = None) -> str:
    if value is None:
        return MISSING
    return f"{100 * value:.3g} %" + (f", {where}" if where and value else "")


def _notes(own: Sequence[tuple[str, BundleResult]]) -> tuple[str, ...]:
    """Say once what holds for all; otherwise name the descendants it holds for."""
    holders: dict[str, list[str]] = {}
    for name, bundle in own:
        for note in bundle.notes:
            holders.setdefault(note, []).append(name)
    return tuple(
        note if len(names) == len(own) else f"{', '.join(names)}: {note}"
        for note, names in holders.items()
    )


def _ordered(first: Sequence[str], records: Iterable[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for record in records for key in record)
    return [key for key in first if key in keys] + [key for key in keys if key not in first]


def _without_empty_columns(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Grid:
    if not rows:
        return Grid()
    keep = [i for i in range(len(header)) if any(row[i] not in ("", MISSING) for row in rows)]
    return Grid(tuple(header[i] for i in keep), tuple(tuple(row[i] for i in keep) for row in rows))
