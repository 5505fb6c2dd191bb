"""What the three plots show: points, and the front among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from elastic_export.config.result import BuildResult, BundleResult, DescendantResult
from elastic_export.report.frames import measured_target, measured_targets, where_measured
from elastic_export.report.pareto import front

__all__ = ["Plot", "Point", "accuracy_latency", "accuracy_macs", "latency_macs", "rank_correlation"]


@dataclass(frozen=True)
class Point:
    """One marker; ``hollow`` where its latency is inconclusive, ``front`` where none beats it."""

    descendant: str
    precision: str
    x: float
    y: float
    hollow: bool = False
    front: bool = False


@dataclass(frozen=True)
class Plot:
    """One figure before it is drawn; ``front`` holds the points to join, in order."""

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    front: tuple[Point, ...]


def accuracy_macs(result: BuildResult) -> Plot:
    """Accuracy over MACs: FP32 at the dense count, 2:4 and INT8 at what 2:4 hardware executes."""
    points = []
    for descendant in result.descendants:
        cost = descendant.cost
        for precision, macs in (
            ("fp32", cost.macs),
            ("2:4", cost.hardware_macs),
            ("int8", cost.hardware_macs),
        ):
            accuracy = descendant.accuracy.get(precision)
            if accuracy:
                points.append(Point(descendant.name, precision, macs, accuracy.top1))
    points = _marked(points)
    skips = any(d.cost.hardware_macs != d.cost.macs for d in result.descendants)
    return Plot(
        name="accuracy-macs",
        title="Accuracy over MACs",
        caption="FP32 stands at its dense MACs; 2:4 and INT8 at the MACs that hardware with "
        "2:4 support executes."
        if skips
        else "Dense MACs: no layer here is one that hardware could skip.",
        x_label="MACs executed per image" if skips else "MACs per image",
        y_label=_accuracy_label(result),
        points=tuple(points),
        front=tuple(point for point in _by_x(points) if point.front),
    )


def accuracy_latency(result: BuildResult, target: str | None = None) -> Plot:
    """Accuracy over the median latency of a target: that of the final table unless given."""
    points = _marked(
        [
            Point(descendant.name, precision, latency.median_ms, top1, not latency.settled)
            for descendant, bundle in _measured(result, target)
            for precision, latency in bundle.latency.items()
            if (top1 := _top1(descendant, bundle, precision)) is not None
        ]
    )
    return Plot(
        name=f"accuracy-latency{_suffix(result, target)}",
        title=f"Accuracy over latency{_on(result, target)}",
        caption=f"Median latency {_where(result, target)}. A hollow marker is an inconclusive "
        "measurement; a thin line joins the precisions of one descendant.",
        x_label=_latency_label(result, target),
        y_label=_accuracy_label(result),
        points=tuple(points),
        front=tuple(point for point in _by_x(points) if point.front),
    )


def latency_macs(result: BuildResult, target: str | None = None) -> Plot:
    """Measured latency over dense MACs; the front is the most MACs for the least latency.

    MACs stand for capacity here: a network off the front is beaten by one that is larger and no
    slower. How well MACs order latency at all is told by their rank correlation.
    """
    found = [
        (descendant, precision, latency)
        for descendant, bundle in _measured(result, target)
        for precision, latency in bundle.latency.items()
    ]
    best = set(front([(latency.median_ms, d.cost.macs) for d, _, latency in found]))
    points = [
        Point(d.name, precision, d.cost.macs, latency.median_ms, not latency.settled, i in best)
        for i, (d, precision, latency) in enumerate(found)
    ]
    caption = "No network with as many MACs is faster than those on the front."
    correlations = [
        f"{precision} {value:.2f}"
        for precision in dict.fromkeys(point.precision for point in points)
        if (value := rank_correlation([p for p in points if p.precision == precision])) is not None
    ]
    if correlations:
        caption += f" Rank correlation of MACs and latency: {', '.join(correlations)}."
    return Plot(
        name=f"latency-macs{_suffix(result, target)}",
        title=f"Latency over MACs{_on(result, target)}",
        caption=caption,
        x_label="dense MACs per image",
        y_label=_latency_label(result, target),
        points=tuple(points),
        front=tuple(point for point in _by_x(points) if point.front),
    )


def rank_correlation(points: list[Point]) -> float | None:
    """Compute Spearman's rank correlation of x and y; ``None`` below four points or if constant."""
    if len(points) < 4:
        return None
    xs, ys = _ranks([p.x for p in points]), _ranks([p.y for p in points])
    mean = (len(points) - 1) / 2
    spread_x = sum((x - mean) ** 2 for x in xs)
    spread_y = sum((y - mean) ** 2 for y in ys)
    if spread_x == 0 or spread_y == 0:
        return None
    shared = sum((x - mean) * (y - mean) for x, y in zip(xs, ys, strict=True))
    return float(shared / (spread_x * spread_y) ** 0.5)


def _ranks(values: list[float]) -> list[float]:
    """Rank from 0, equal values sharing their mean rank."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]


def _measured(
    result: BuildResult, target: str | None
) -> Iterator[tuple[DescendantResult, BundleResult]]:
    target = target or measured_target(result)
    for descendant in result.descendants:
        for bundle in descendant.bundles:
            if bundle.target == target and bundle.latency:
                yield descendant, bundle


def _suffix(result: BuildResult, target: str | None) -> str:
    """What tells a plot's file from that of the final table's target."""
    if target is None or target == measured_target(result):
        return ""
    return f".{re.sub(r'[^A-Za-z0-9._+@-]', '-', target)}"


def _on(result: BuildResult, target: str | None) -> str:
    """Name the target in the title where there are several."""
    named = target or measured_target(result)
    return f" on {named}" if len(measured_targets(result)) > 1 else ""


def _where(result: BuildResult, target: str | None) -> str:
    board = where_measured(result, target or measured_target(result) or "")
    return f"on the board {board}" if board else "on this machine"


def _top1(descendant: DescendantResult, bundle: BundleResult, precision: str) -> float | None:
    accuracy = bundle.accuracy.get(precision) or descendant.accuracy.get(precision)
    return accuracy.top1 if accuracy else None


def _by_x(points: list[Point]) -> list[Point]:
    return sorted(points, key=lambda p: (p.x, p.y))


def _marked(points: list[Point]) -> list[Point]:
    best = set(front([(p.x, p.y) for p in points]))
    return [
        Point(p.descendant, p.precision, p.x, p.y, p.hollow, index in best)
        for index, p in enumerate(points)
    ]


def _accuracy_label(result: BuildResult) -> str:
    split = next((a.split for d in result.descendants for a in d.accuracy.values()), "test")
    return f"top-1 on {split} (%)"


def _latency_label(result: BuildResult, target: str | None) -> str:
    for _, bundle in _measured(result, target):
        latency = next(iter(bundle.latency.values()))
        how = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
        how = latency.runner if latency.on else how
        return f"median latency, batch {latency.batch_size}, {how} (ms)"
    return "median latency (ms)"
