"""Which of two measured candidates is faster, and whether the difference is more than noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from elastic_export.measure.protocol import TOLERANCE, Timing

__all__ = ["FLOOR", "Comparison", "choose", "choose_deployed", "compare"]

FLOOR = 0.02
"""Differences up to this share are not acted on: memory layout alone moves equal code by 1-2 %."""

RESAMPLES = 2000
CONFIDENCE = 95.0


@dataclass(frozen=True)
class Comparison:
    """Latency of one candidate over another: ``ratio`` < 1 says that the first is faster.

    ``low`` and ``high`` bound the 95 % bootstrap interval over rounds; ``best`` and ``worst`` are
    the extremes of the ratios within single rounds.
    """

    ratio: float
    low: float
    high: float
    best: float
    worst: float
    settled: bool

    @property
    def faster(self) -> bool:
        """Tell whether the first is faster beyond noise.

        The whole interval must lie more than 2 % below 1. Where a measurement did not settle,
        the first must have been faster by more than 5 % in every single round as well.
        """
        if not self.high < 1 - FLOOR:
            return False
        return self.settled or self.worst < 1 - TOLERANCE


def compare(a: Timing, b: Timing) -> Comparison:
    """Compare two timings of one ``measure_interleaved``, paired by round.

    The ratio is that of the medians in every table, over all timed calls. The bootstrap draws
    rounds, and takes both candidates' samples of a drawn round together, so that drift common to
    both cancels.

    Raises:
        ValueError: The timings do not come from the same rounds.
    """
    if len(a.sample_ms) != len(b.sample_ms) or not a.sample_ms:
        raise ValueError(
            f"timings of {len(a.sample_ms)} and {len(b.sample_ms)} rounds cannot be paired"
        )
    first, second = np.asarray(a.sample_ms), np.asarray(b.sample_ms)
    draws = np.random.default_rng(0).integers(0, len(first), size=(RESAMPLES, len(first)))
    ratios = np.median(first[draws], axis=1) / np.median(second[draws], axis=1)
    low, high = np.percentile(ratios, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
    rounds = first / second
    return Comparison(
        ratio=a.median_ms / b.median_ms,
        low=float(low),
        high=float(high),
        best=float(rounds.min()),
        worst=float(rounds.max()),
        settled=a.settled and b.settled,
    )


def choose(timings: Mapping[str, Timing], *, baseline: str = "fp32") -> tuple[str, str]:
    """Choose what to deploy by speed: the baseline unless something is faster beyond noise.

    Args:
        timings: Timings of one ``measure_interleaved`` by precision; ``baseline`` among them.
        baseline: What stays when nothing is faster.

    Returns:
        The chosen name and the reason as a full sentence with its figures.

    Raises:
        ValueError: The baseline was not measured.
    """
    if baseline not in timings:
        raise ValueError(f"{baseline} was not measured; there is {', '.join(timings) or 'nothing'}")
    against = {
        name: compare(timing, timings[baseline])
        for name, timing in timings.items()
        if name != baseline
    }
    if not against:
        return baseline, f"{baseline} is the only one measured."
    faster = {name: verdict for name, verdict in against.items() if verdict.faster}
    if faster:
        name = min(faster, key=lambda key: faster[key].ratio)
        return name, f"{_speed(name, baseline, faster[name])}."
    name = min(against, key=lambda key: against[key].ratio)
    return baseline, f"{_speed(name, baseline, against[name])}; {_why_not(against[name])}."


def choose_deployed(timings: Mapping[str, Timing], *, gpu: bool) -> tuple[str | None, str]:
    """Choose a precision by speed: FP16 stays on a GPU and FP32 on the CPU unless one is faster.

    Args:
        timings: Precision to timing, of one run and of the deployed runtime alone.
        gpu: Whether that runs on a GPU, where FP16 costs no accuracy.

    Returns:
        The precision, or None where nothing can be compared, and the reason as a full sentence.
    """
    usual = ("fp16", "fp32") if gpu else ("fp32",)
    baseline = next((name for name in usual if name in timings), None)
    if baseline is None:
        return None, f"there is no {usual[0]} figure that the others could be compared with."
    if len({len(timing.sample_ms) for timing in timings.values()}) > 1:
        return None, "some were measured in fewer rounds than others."
    return choose(timings, baseline=baseline)


def _speed(name: str, baseline: str, verdict: Comparison) -> str:
    text = (
        f"{name} runs at {1 / verdict.ratio:.2f}x the speed of {baseline} "
        f"(95 % interval {1 / verdict.high:.2f}-{1 / verdict.low:.2f}x)"
    )
    if not verdict.settled and verdict.faster:
        text += ", the measurement is inconclusive but it was faster in every round"
    return text


def _why_not(verdict: Comparison) -> str:
    if verdict.low > 1 + FLOOR:
        return "it is slower"
    if verdict.high < 1 - FLOOR and not verdict.settled:
        return "the measurement is inconclusive, and it was not faster in every round"
    return "the difference is within noise"
