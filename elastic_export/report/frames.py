"""The rows behind every table: one per descendant and target, missing figures as ``None``."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass

from elastic_export.config.result import (
    Accuracy,
    BuildResult,
    BundleResult,
    DescendantResult,
    Latency,
)

__all__ = [
    "LatencyRow",
    "Row",
    "accuracy_sources",
    "estimated_targets",
    "final_rows",
    "latency_rows",
    "measured_target",
    "measured_targets",
    "rows",
    "targets",
    "where_measured",
]


@dataclass(frozen=True)
class Row:
    """One descendant on one target, flat: the columns of ``results.csv`` in their order.

    Accuracies are top-1 in percent, latencies milliseconds of one batch, sizes bytes. ``status``
    is ``settled``, ``inconclusive`` (any latency of the row is) or empty (none was measured).
    """

    descendant: str
    spec_id: str
    target: str
    top1_fp32: float | None
    top1_2_4: float | None
    top1_int8: float | None
    how_fp32: str
    how_2_4: str
    how_int8: str
    macs: int
    algorithmic_macs: int
    hardware_macs: int
    params: int
    bytes_fp32: int | None
    bytes_int8: int | None
    fp32_median_ms: float | None
    fp32_p90_ms: float | None
    fp32_p99_ms: float | None
    int8_median_ms: float | None
    int8_p90_ms: float | None
    int8_p99_ms: float | None
    runner: str
    threads: int | None
    batch_size: int | None
    chosen: str
    chosen_because: str
    status: str


@dataclass(frozen=True)
class LatencyRow:
    """One measurement, flat: the columns of ``latencies.csv`` in their order.

    ``on`` is the board, empty for this machine; ``compute_ms`` the median of the GPU's part;
    ``energy_mj`` that of one batch, by ``energy_is``; ``sparse_eligible`` and ``sparse_picked``
    count layers by the builder's log; ``chosen`` tells whether it is the precision to deploy.
    """

    target: str
    on: str
    descendant: str
    precision: str
    top1: float | None
    how: str
    macs: int
    hardware_macs: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    cov: float
    compute_ms: float | None
    energy_mj: float | None
    energy_is: str
    samples: int
    runs: int
    batch_size: int
    threads: int
    runner: str
    layers: int | None
    int8_layers: int | None
    fused_attention: int | None
    sparse_eligible: int | None
    sparse_picked: int | None
    status: str
    why: str
    marks: str
    chosen: bool


def rows(result: BuildResult) -> list[Row]:
    """Give one row per descendant and target, in the order of the result.

    A descendant without bundles gives one row with an empty target.
    """
    return [
        _row(descendant, bundle)
        for descendant in result.descendants
        for bundle in (descendant.bundles or (None,))
    ]


def final_rows(result: BuildResult) -> list[Row]:
    """Give one row per descendant, on the target that was measured here (else the first one)."""
    target = measured_target(result)
    found = []
    for descendant in result.descendants:
        bundle = next((b for b in descendant.bundles if b.target == target), None)
        found.append(_row(descendant, bundle or next(iter(descendant.bundles), None)))
    return found


def targets(result: BuildResult) -> list[str]:
    """List the targets of all bundles in the order they first appear."""
    seen = [bundle.target for descendant in result.descendants for bundle in descendant.bundles]
    return list(dict.fromkeys(seen))


def latency_rows(result: BuildResult, target: str | None = None) -> list[LatencyRow]:
    """Give one row per measurement, of one target or of all, in the order of the result."""
    return [
        _latency_row(descendant, bundle, precision, latency)
        for descendant in result.descendants
        for bundle in descendant.bundles
        if target in (None, bundle.target)
        for precision, latency in bundle.latency.items()
    ]


def measured_targets(result: BuildResult) -> list[str]:
    """List the targets whose latency was measured, what was measured on this machine first."""
    here: dict[str, None] = {}
    away: dict[str, None] = {}
    for row in latency_rows(result):
        (away if row.on else here)[row.target] = None
    return [*here, *away]


def measured_target(result: BuildResult) -> str | None:
    """Name the target that the final table is about: measured here, else on a board, or None."""
    return next(iter(measured_targets(result)), None)


def estimated_targets(result: BuildResult) -> list[str]:
    """List the targets that hold an estimate."""
    found = [
        bundle.target
        for descendant in result.descendants
        for bundle in descendant.bundles
        if bundle.estimate
    ]
    return list(dict.fromkeys(found))


def where_measured(result: BuildResult, target: str) -> str:
    """Name the board that a target was measured on; empty where it was this machine or none."""
    return next((row.on for row in latency_rows(result, target)), "")


def accuracy_sources(result: BuildResult) -> dict[str, list[str]]:
    """Sort the targets with an accuracy into ``deployed`` and ``emulated`` (any of theirs is)."""
    found: dict[str, list[str]] = {"deployed": [], "emulated": []}
    for target in targets(result):
        hows = {
            accuracy.how
            for descendant in result.descendants
            for bundle in descendant.bundles
            if bundle.target == target
            for accuracy in bundle.accuracy.values()
        }
        if hows:
            found["emulated" if "emulated" in hows else "deployed"].append(target)
    return found


def _hardware_macs(descendant: DescendantResult, bundle: BundleResult | None) -> int:
    """What the target executes; without one, what a device with 2:4 kernels would."""
    known = bundle.hardware_macs if bundle else None
    return descendant.cost.hardware_macs if known is None else known


def _row(descendant: DescendantResult, bundle: BundleResult | None) -> Row:
    # FP32 and 2:4 are stations of the descendant; INT8 is what this target's flavour gives.
    on_target = bundle.accuracy if bundle else {}
    dense = on_target.get("fp32") or _there(descendant.accuracy.get("fp32"), bundle)
    sparse = on_target.get("2:4") or _there(descendant.accuracy.get("2:4"), bundle)
    int8 = on_target.get("int8") or _there(descendant.accuracy.get("int8"), bundle)
    latency = bundle.latency if bundle else {}
    fp32_latency, int8_latency = latency.get("fp32"), latency.get("int8")
    any_latency = next(iter(latency.values()), None)
    return Row(
        descendant=descendant.name,
        spec_id=descendant.spec_id,
        target=bundle.target if bundle else "",
        top1_fp32=_top1(dense),
        top1_2_4=_top1(sparse),
        top1_int8=_top1(int8),
        how_fp32=dense.how if dense else "",
        how_2_4=sparse.how if sparse else "",
        how_int8=int8.how if int8 else "",
        macs=descendant.cost.macs,
        algorithmic_macs=descendant.cost.algorithmic_macs,
        hardware_macs=_hardware_macs(descendant, bundle),
        params=descendant.cost.params,
        bytes_fp32=bundle.bytes.get("fp32") if bundle else None,
        bytes_int8=bundle.bytes.get("int8") if bundle else None,
        fp32_median_ms=fp32_latency.median_ms if fp32_latency else None,
        fp32_p90_ms=fp32_latency.p90_ms if fp32_latency else None,
        fp32_p99_ms=fp32_latency.p99_ms if fp32_latency else None,
        int8_median_ms=int8_latency.median_ms if int8_latency else None,
        int8_p90_ms=int8_latency.p90_ms if int8_latency else None,
        int8_p99_ms=int8_latency.p99_ms if int8_latency else None,
        runner=any_latency.runner if any_latency else "",
        threads=any_latency.threads if any_latency else None,
        batch_size=any_latency.batch_size if any_latency else None,
        chosen=(bundle.chosen or "") if bundle else "",
        chosen_because=bundle.chosen_because if bundle else "",
        status=_status(latency.values()),
    )


def _latency_row(
    descendant: DescendantResult, bundle: BundleResult, precision: str, latency: Latency
) -> LatencyRow:
    accuracy = bundle.accuracy.get(precision)
    engine = bundle.engines.get(precision, {})
    return LatencyRow(
        target=bundle.target,
        on=latency.on or "",
        descendant=descendant.name,
        precision=precision,
        top1=_top1(accuracy),
        how=accuracy.how if accuracy else "",
        macs=descendant.cost.macs,
        hardware_macs=bundle.executed_macs.get(precision, _hardware_macs(descendant, bundle)),
        median_ms=latency.median_ms,
        p90_ms=latency.p90_ms,
        p99_ms=latency.p99_ms,
        cov=latency.cov,
        compute_ms=latency.compute_ms,
        energy_mj=latency.energy_mj,
        energy_is=latency.energy_is,
        samples=latency.samples,
        runs=latency.runs,
        batch_size=latency.batch_size,
        threads=latency.threads,
        runner=latency.runner,
        layers=engine.get("layers"),
        int8_layers=engine.get("int8_layers"),
        fused_attention=engine.get("fused_attention"),
        sparse_eligible=_count(engine.get("eligible_sparse")),
        sparse_picked=_count(engine.get("picked_sparse")),
        status=latency.status,
        why=latency.unsettled_because,
        marks=" ".join(latency.marks),
        chosen=bundle.chosen == precision,
    )


def _there(accuracy: Accuracy | None, bundle: BundleResult | None) -> Accuracy | None:
    """Call a station's accuracy emulated where the target's own figures are."""
    emulated = bundle is not None and any(a.how == "emulated" for a in bundle.accuracy.values())
    if accuracy is None or not emulated:
        return accuracy
    return accuracy.model_copy(update={"how": "emulated"})


def _count(names: Sized | None) -> int | None:
    return None if names is None else len(names)


def _top1(accuracy: Accuracy | None) -> float | None:
    return accuracy.top1 if accuracy else None


def _status(latencies: Iterable[Latency]) -> str:
    statuses = {latency.status for latency in latencies}
    if not statuses:
        return ""
    return "inconclusive" if "inconclusive" in statuses else "settled"
