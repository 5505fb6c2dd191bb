"""The accuracy guard: layers that cost too much accuracy in INT8 return to floating point.

The idea is NNCF's ``quantize_with_accuracy_control``
(https://github.com/openvinotoolkit/nncf): rank layers by what each costs, then revert in that
order until the loss is acceptable. Here a layer's cost is weighed against what it saves: points of
accuracy won back per millisecond lost.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from elastic_export.errors import CheckFailed
from elastic_export.progress import Progress, no_progress
from elastic_export.quantize.record import QuantizationRecord
from elastic_export.search.state import load_state, save_state

__all__ = ["GuardReport", "Returned", "Savings", "guard"]

Savings = Mapping[str, float] | Callable[[], Mapping[str, float]] | None
"""Milliseconds each layer saves in INT8, or what measures them once layers must return."""


@dataclass(frozen=True)
class Returned:
    """A layer that went back to floating point.

    Args:
        module: Its name.
        gain: Top-1 points won when it alone is in floating point.
        saved_ms: Milliseconds that its INT8 form saved, below zero where it was slower; None where
            nobody measured it.
        source: ``measured``, or ``none`` where there is no figure.
    """

    module: str
    gain: float
    saved_ms: float | None
    source: Literal["measured", "none"]


@dataclass(frozen=True)
class GuardReport:
    """What the guard found; accuracies in percent, drops in percentage points.

    Args:
        record: The record that holds the guard: the given one, or one with layers returned.
        baseline: Accuracy in floating point.
        before: Accuracy with the record as calibrated.
        after: Accuracy with ``record``.
        max_drop: What was allowed.
        returned: Layers returned to floating point, in the order of return.
        layers: How many layers could have returned.
        evaluations: How many records were evaluated, in an earlier, interrupted run included.
    """

    record: QuantizationRecord
    baseline: float
    before: float
    after: float
    max_drop: float
    returned: tuple[Returned, ...]
    layers: int
    evaluations: int

    @property
    def drop(self) -> float:
        """Points lost against the baseline; negative where INT8 is better."""
        return self.baseline - self.after

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a report, without the record."""
        return {
            "baseline": self.baseline,
            "before": self.before,
            "after": self.after,
            "drop": self.drop,
            "max_drop": self.max_drop,
            "returned": [vars(entry).copy() for entry in self.returned],
            "layers": self.layers,
            "evaluations": self.evaluations,
        }


def guard(
    record: QuantizationRecord,
    accuracy: Callable[[QuantizationRecord], float],
    baseline: float,
    max_drop: float,
    *,
    saved_ms: Savings = None,
    layers: Sequence[str] | None = None,
    state: Path | None = None,
    progress: Progress = no_progress,
) -> GuardReport:
    """Return layers to floating point until INT8 costs at most ``max_drop`` points.

    One evaluation if the record holds as it is. Otherwise each of the L layers is measured in
    floating point with all others in INT8 and they are put in order (see :func:`_order`); the
    number that must return is then found by bisection, which begins where the single gains add up
    to what is missing. At most 2 L evaluations, about L + log2 L as a rule. Accuracy on a
    finite set of images need not rise with every layer returned: what is kept was measured and
    holds, and with its last layer in INT8 again it was measured and does not.

    Args:
        record: As calibrated.
        accuracy: Measures the top-1 accuracy, in percent, that a record gives.
        baseline: Top-1 accuracy in floating point, in percent, on the same images.
        max_drop: Percentage points that may be lost.
        saved_ms: What each layer saves in INT8; without it points alone decide.
        layers: Modules that may return; those quantized in ``record`` where None.
        state: A file that keeps what was measured, so that an interrupted guard goes on.
        progress: Told of every evaluation.

    Raises:
        CheckFailed: an accuracy is not a number, or the drop stays with every layer returned.
    """
    layers = record.quantized_modules() if layers is None else list(layers)
    measure = _Evaluations(accuracy, record, state)
    before = measure(record)
    if baseline - before <= max_drop:
        return GuardReport(
            record, baseline, before, before, max_drop, (), len(layers), measure.count
        )
    reason = f"In INT8 it costs accuracy: the guard allows {max_drop:g} points."

    def gain(name: str) -> float:
        found = measure(record.with_float({name: reason})) - before
        progress.advance(note=f"{name} {found:+.2f} points")
        return found

    progress.start("accuracy guard", len(layers))
    try:
        gains = {name: gain(name) for name in layers}
    finally:
        progress.finish()
    savings = measure.savings(saved_ms)
    order = _order(gains, savings)

    def held(count: int) -> tuple[QuantizationRecord, float]:
        kept = record.with_float(dict.fromkeys(order[:count], reason))
        return kept, measure(kept)

    guess = _additive_guess([gains[name] for name in order], baseline - max_drop - before)
    count = _fewest(lambda n: baseline - held(n)[1] <= max_drop, len(order), guess, progress)
    if count is None:
        raise CheckFailed(
            f"With every layer back in floating point the accuracy still misses {baseline:.2f} % "
            f"by more than {max_drop:g} points.",
            "Measure the baseline on the same images and graph as the guard.",
        )
    kept, after = held(count)
    returned = tuple(
        Returned(name, gains[name], savings.get(name), "measured" if name in savings else "none")
        for name in order[:count]
    )
    return GuardReport(
        kept, baseline, before, after, max_drop, returned, len(layers), measure.count
    )


def _order(gains: Mapping[str, float], savings: Mapping[str, float]) -> list[str]:
    """Put first what wins the most points per millisecond lost; ties keep the layers' order.

    A layer whose INT8 saves nothing loses nothing by returning, so it goes before all that do,
    unless its return would cost accuracy: then it goes last. A layer nobody could time counts as
    one of the median saving.
    """
    typical = statistics.median(savings.values()) if savings else 1.0
    unknown = typical if typical > 0 else 1.0

    def rank(name: str) -> tuple[float, float]:
        gain, saved = gains[name], savings.get(name, unknown)
        if saved > 0:
            return gain / saved, gain
        return (math.inf if gain >= 0 else -math.inf), gain

    return sorted(gains, key=rank, reverse=True)


def _additive_guess(gains: Sequence[float], missing: float) -> int:
    """How many layers would have to return if their gains added up."""
    total = 0.0
    for count, gain in enumerate(gains, start=1):
        total += gain
        if total >= missing:
            return count
    return len(gains)


def _fewest(holds: Callable[[int], bool], most: int, guess: int, progress: Progress) -> int | None:
    """Find a count that holds and whose predecessor does not; None if not even ``most`` holds."""
    fails, works, tried = 0, most + 1, guess
    progress.start("return layers", max(1, math.ceil(math.log2(most + 1))))
    try:
        while works - fails > 1:
            if holds(tried):
                works = tried
            else:
                fails = tried
            progress.advance(note=f"{tried} layers in floating point")
            tried = (fails + min(works, most + 1)) // 2
    finally:
        progress.finish()
    return works if works <= most else None


class _Evaluations:
    """Measured accuracies by record, kept on disk; refuses what is not a number."""

    def __init__(
        self,
        accuracy: Callable[[QuantizationRecord], float],
        record: QuantizationRecord,
        path: Path | None,
    ) -> None:
        self._accuracy = accuracy
        self._path = path
        self._key = {"record": record.digest}
        found = load_state(path, self._key)[0] if path is not None else None
        self._state: dict[str, Any] = found or {"accuracy": {}, "saved_ms": None}

    @property
    def count(self) -> int:
        return len(self._state["accuracy"])

    def __call__(self, record: QuantizationRecord) -> float:
        known: dict[str, float] = self._state["accuracy"]
        digest = record.digest
        if digest not in known:
            found = float(self._accuracy(record))
            if not math.isfinite(found):
                raise CheckFailed(
                    "The quantized network gives an accuracy that is not a number.",
                    "Check its outputs for NaN; a calibration range may be too small.",
                )
            known[digest] = found
            self._save()
        return known[digest]

    def savings(self, saved_ms: Savings) -> dict[str, float]:
        """Milliseconds by layer; measured once, because another measurement gives another order."""
        if self._state["saved_ms"] is None:
            found = saved_ms() if callable(saved_ms) else saved_ms or {}
            self._state["saved_ms"] = {name: float(value) for name, value in found.items()}
            self._save()
        kept: dict[str, float] = self._state["saved_ms"]
        return kept

    def _save(self) -> None:
        if self._path is not None:
            save_state(self._path, self._key, self._state)
