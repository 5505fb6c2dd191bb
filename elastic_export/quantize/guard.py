"""The accuracy guard: layers that cost too much accuracy in INT8 return to floating point.

The idea is NNCF's ``quantize_with_accuracy_control``
(https://github.com/openvinotoolkit/nncf): rank layers by what each costs, then revert in that
order until the loss is acceptable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from elastic_export.errors import CheckFailed
from elastic_export.progress import Progress, no_progress
from elastic_export.quantize.record import QuantizationRecord

__all__ = ["GuardReport", "Returned", "guard"]


@dataclass(frozen=True)
class Returned:
    """A layer that went back to floating point.

    Args:
        module: Its name.
        gain: Top-1 points won when it alone is in floating point.
    """

    module: str
    gain: float


@dataclass(frozen=True)
class GuardReport:
    """What the guard found; accuracies in percent, drops in percentage points.

    Args:
        record: The record that holds the guard: the given one, or one with layers returned.
        baseline: Accuracy in floating point.
        before: Accuracy with the record as calibrated.
        after: Accuracy with ``record``.
        max_drop: What was allowed.
        returned: Layers returned to floating point, the most sensitive first.
        evaluations: How often accuracy was measured.
    """

    record: QuantizationRecord
    baseline: float
    before: float
    after: float
    max_drop: float
    returned: tuple[Returned, ...]
    evaluations: int

    @property
    def drop(self) -> float:
        """Points lost against the baseline; negative where INT8 is better."""
        return self.baseline - self.after

    def to_json(self) -> dict[str, object]:
        """Return plain values for a report, without the record."""
        return {
            "baseline": self.baseline,
            "before": self.before,
            "after": self.after,
            "drop": self.drop,
            "max_drop": self.max_drop,
            "returned": [{"module": r.module, "gain": r.gain} for r in self.returned],
            "evaluations": self.evaluations,
        }


def guard(
    record: QuantizationRecord,
    sensitivity: Callable[[QuantizationRecord], float],
    baseline: float,
    max_drop: float,
    *,
    progress: Progress = no_progress,
) -> GuardReport:
    """Return layers to floating point until INT8 costs at most ``max_drop`` points.

    One evaluation if the record holds as it is. Otherwise each of the L quantized layers is
    measured in floating point with all others in INT8; in the order of what that wins (ties: the
    earlier layer) layers return one by one, evaluated after each: at most 2 L evaluations in all.

    Args:
        record: As calibrated.
        sensitivity: Measures the top-1 accuracy, in percent, that a record gives.
        baseline: Top-1 accuracy in floating point, in percent, on the same images.
        max_drop: Percentage points that may be lost.
        progress: Told of every evaluation.

    Raises:
        CheckFailed: an accuracy is not a number, or the drop stays with no layer quantized.
    """
    layers = record.quantized_modules()
    measure = _Counter(sensitivity, progress)
    before = measure(record)
    if baseline - before <= max_drop:
        return GuardReport(record, baseline, before, before, max_drop, (), measure.count)

    progress.start("accuracy guard", len(layers))
    reason = f"In INT8 it costs accuracy: the guard allows {max_drop:g} points."
    alone = {name: measure(record.with_float({name: reason})) for name in layers}
    progress.finish()
    order = sorted(layers, key=lambda name: -alone[name])
    returned: list[Returned] = []
    reasons: dict[str, str] = {}
    for name in order:
        returned.append(Returned(name, alone[name] - before))
        reasons[name] = reason
        kept = record.with_float(reasons)
        after = alone[name] if len(returned) == 1 else measure(kept)
        if baseline - after <= max_drop:
            return GuardReport(
                kept, baseline, before, after, max_drop, tuple(returned), measure.count
            )
    raise CheckFailed(
        f"With every layer back in floating point the accuracy still misses {baseline:.2f} % by "
        f"more than {max_drop:g} points.",
        "Measure the baseline on the same images and graph as the guard.",
    )


class _Counter:
    """Counts evaluations and refuses what is not a number."""

    def __init__(
        self, sensitivity: Callable[[QuantizationRecord], float], progress: Progress
    ) -> None:
        self._sensitivity = sensitivity
        self._progress = progress
        self.count = 0

    def __call__(self, record: QuantizationRecord) -> float:
        self.count += 1
        accuracy = float(self._sensitivity(record))
        if not math.isfinite(accuracy):
            raise CheckFailed(
                "The quantized network gives an accuracy that is not a number.",
                "Check its outputs for NaN; a calibration range may be too small.",
            )
        if self.count > 1:
            self._progress.advance(note=f"top-1 {accuracy:.2f} %")
        return accuracy
