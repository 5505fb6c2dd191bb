"""The result in words: what was built, how accurate and how fast it is, what is not known."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from elastic_export.config.result import BuildResult, BundleResult, Latency
from elastic_export.report.frames import (
    LatencyRow,
    Row,
    final_rows,
    latency_rows,
    measured_target,
    measured_targets,
    targets,
    where_measured,
)
from elastic_export.report.units import count, milliseconds, percent, seconds, size

__all__ = ["figures", "sentences"]


def sentences(result: BuildResult) -> list[str]:
    """Tell the result in full sentences, the most important first.

    Every sentence is drawn from figures of the result; what is missing is said or left out, never
    guessed.
    """
    table = final_rows(result)
    if not table:
        return ["The build kept no descendant."]
    found = [
        _what(result, table),
        _accuracy(table),
        _speed(result, table),
        *_boards(result),
        _settled(result),
        _elsewhere(result),
    ]
    return [sentence for sentence in found if sentence]


def figures(result: BuildResult) -> list[tuple[str, str, str]]:
    """Pick the few figures that tell most: value, what it is, and a remark."""
    table = final_rows(result)
    kind = "descendant" if len(table) == 1 else "descendants"
    found = [(str(len(table)), kind, _span([row.macs for row in table], count, "MACs"))]
    top1 = [row.top1_fp32 for row in table if row.top1_fp32 is not None]
    if top1:
        found.append((f"{percent(max(top1))} %", "best top-1, FP32", _span(top1, percent, "%")))
    int8 = [row.top1_int8 for row in table if row.top1_int8 is not None]
    if int8:
        found.append((f"{percent(max(int8))} %", "best top-1, INT8", _span(int8, percent, "%")))
    ratios = _speed_ratios(table)
    if ratios:
        value = f"{statistics.median(ratios):.2f}\u00d7"
        remark = f"{_range(ratios, _two_digits)} on {measured_target(result)}"
        found.append((value, "INT8 speed over FP32", remark))
    sizes = _size_ratios(table)
    if sizes:
        value = f"{statistics.median(sizes):.2f}\u00d7"
        small = [row.bytes_int8 for row in table if row.bytes_int8]
        found.append((value, "INT8 file size over FP32", _span(small, size, "")))
    return found


def _what(result: BuildResult, table: Sequence[Row]) -> str:
    one = len(table) == 1
    kinds = "descendant" if one else "descendants"
    family = result.supernet.get("family")
    origin = f" of a {family} supernet" if family else ""
    data = result.dataset.get("name")
    on = f" on {data}" if data else ""
    macs = _range([row.macs for row in table], count)
    params = _range([row.params for row in table], count)
    return (
        f"{len(table)} {kinds}{origin}{on}, {macs} MACs and {params} parameters, "
        f"in {seconds(result.wall_seconds)}."
    )


def _accuracy(table: Sequence[Row]) -> str:
    parts = []
    for label, values in (
        ("FP32", [row.top1_fp32 for row in table]),
        ("2:4", [row.top1_2_4 for row in table]),
        ("INT8", [row.top1_int8 for row in table]),
    ):
        known = [value for value in values if value is not None]
        if known:
            parts.append(f"{label} {_range(known, percent)} %")
    if not parts:
        return "Accuracy was not measured."
    text = f"Top-1 on held-out test images: {', '.join(parts)}"
    sparse = any(row.top1_2_4 is not None for row in table)
    lost = [("2:4", "FP32", [(row.top1_fp32, row.top1_2_4, row.descendant) for row in table])]
    # INT8 is made of the sparse network, so that is what its own cost is seen against.
    lost.append(
        (
            "INT8",
            "2:4" if sparse else "FP32",
            [
                (row.top1_2_4 if sparse else row.top1_fp32, row.top1_int8, row.descendant)
                for row in table
            ],
        )
    )
    for what, against, figures in lost:
        drops = [
            (before - after, name)
            for before, after, name in figures
            if before is not None and after is not None
        ]
        if drops:
            worst, name = max(drops)
            cost = f"at most {worst:.1f} points" if worst > 0 else "nothing"
            text += f"; {what} costs {cost} against {against}"
            text += f" ({name})" if worst > 0 else ""
    return text + "."


def _speed(result: BuildResult, table: Sequence[Row]) -> str:
    target = measured_target(result)
    if target is None:
        return "No latency was measured."
    if where_measured(result, target):
        return ""  # a board has a sentence of its own
    ratios = _speed_ratios(table)
    if not ratios:
        return f"Latency on {target} was measured for one precision only."
    chosen = sum(row.chosen == "int8" for row in table)
    speed = _range(ratios, _two_digits)
    text = f"On {target} INT8 runs at {speed} times the speed of FP32 and was "
    if chosen == 0:
        text += "not chosen"
    elif chosen == len(table):
        text += "chosen" if chosen == 1 else f"chosen for all {chosen}"
    else:
        text += f"chosen for {chosen} of {len(table)}"
    sizes = _size_ratios(table)
    if sizes:
        smallest = min(row.bytes_int8 for row in table if row.bytes_int8)
        text += f"; INT8 files are {_range(sizes, _two_digits)} times the size"
        text += f" (the smallest has {size(smallest)})"
    return text + "."


def _boards(result: BuildResult) -> list[str]:
    """One sentence for each board: how fast its choices are, and what INT8 is worth there."""
    found = []
    for target in measured_targets(result):
        board = where_measured(result, target)
        if not board:
            continue
        lines = latency_rows(result, target)
        by_name: dict[str, dict[str, LatencyRow]] = {}
        for line in lines:
            by_name.setdefault(line.descendant, {})[line.precision] = line
        chosen = [line.median_ms for line in lines if line.chosen]
        text = f"On {target}, measured on {board}, "
        text += (
            f"the chosen files take {_range(chosen, milliseconds)} ms"
            if chosen
            else f"{_listed([line.precision for line in by_name[lines[0].descendant].values()])} "
            "were measured, and none was chosen"
        )
        ratios = [
            each["fp16"].median_ms / each["int8"].median_ms
            for each in by_name.values()
            if {"fp16", "int8"} <= set(each)
        ]
        if ratios:
            text += f"; INT8 runs at {_range(ratios, _two_digits)} times the speed of FP16"
        found.append(f"{text}.")
    return found


def _settled(result: BuildResult) -> str:
    latencies: list[Latency] = [
        latency for bundle in _bundles(result) for latency in bundle.latency.values()
    ]
    if not latencies:
        return ""
    open_ones = sum(not latency.settled for latency in latencies)
    if not open_ones:
        return f"All {len(latencies)} latency measurements settled."
    verb = "is" if open_ones == 1 else "are"
    return f"{open_ones} of {len(latencies)} latency measurements {verb} inconclusive."


def _elsewhere(result: BuildResult) -> str:
    """Say what holds for devices that are not here: accepted is not run."""
    here = measured_targets(result)
    others = [target for target in targets(result) if target not in here]
    accepted = [
        engine
        for bundle in _bundles(result)
        if bundle.target in others
        for engine in bundle.engines.values()
        if engine.get("status") == "accepted"
    ]
    parts = []
    if here and others:
        estimated = any(bundle.estimate for bundle in _bundles(result))
        told = " (the page holds estimates)" if estimated else ""
        parts.append(f"Nothing was timed on {_listed(others)}{told}")
    if accepted:
        runtimes = sorted({str(engine.get("runtime", "a builder")) for engine in accepted})
        plural = "engine was" if len(accepted) == 1 else "engines were"
        parts.append(
            f"{len(accepted)} {plural} accepted by the builder of {_listed(runtimes)}, not run"
        )
    return f"{'; '.join(parts)}." if parts else ""


def _speed_ratios(table: Sequence[Row]) -> list[float]:
    return [
        row.fp32_median_ms / row.int8_median_ms
        for row in table
        if row.fp32_median_ms is not None and row.int8_median_ms
    ]


def _size_ratios(table: Sequence[Row]) -> list[float]:
    return [row.bytes_int8 / row.bytes_fp32 for row in table if row.bytes_int8 and row.bytes_fp32]


def _two_digits(value: float) -> str:
    return f"{value:.2f}"


def _span(values: Sequence[float], write: Callable[[float], str], unit: str) -> str:
    return f"{_range(values, write)} {unit}".strip() if values else ""


def _bundles(result: BuildResult) -> list[BundleResult]:
    return [bundle for descendant in result.descendants for bundle in descendant.bundles]


def _listed(words: Sequence[str]) -> str:
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _range(values: Iterable[float], write: Callable[[float], str]) -> str:
    """Write the least and the greatest, or one where they read the same."""
    known = list(values)
    low, high = write(min(known)), write(max(known))
    return low if low == high else f"{low} to {high}"
