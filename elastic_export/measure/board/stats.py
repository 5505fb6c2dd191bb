"""Figures of a series of latencies, and the rule that says when they may be trusted.

The rule is that of ``elastic_export.measure.protocol``, whose source it names; here it is written
without NumPy.
"""

from typing import Any, Dict, List, Sequence

__all__ = ["MIN_SAMPLES", "Series", "median", "quantile", "summary", "unsettled_because"]

MIN_SAMPLES = 10
TOLERANCE = 0.05
NEAR_SHARE = 0.8


class Series:
    """One sample of a model: many inferences in a row, and when they ran.

    Args:
        latency: Of each inference, in milliseconds.
        compute: GPU compute of each, in milliseconds; empty where there is no such figure.
        begin: When the first of them began, in seconds of ``time.monotonic``.
        end: When the last of them ended.
        exact: Begin and end were observed, not concluded from the figures.
    """

    def __init__(
        self,
        latency: List[float],
        compute: List[float],
        begin: float,
        end: float,
        exact: bool = True,
    ) -> None:
        self.latency = latency
        self.compute = compute
        self.begin = begin
        self.end = end
        self.exact = exact


def quantile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, linear between neighbours: ``quantile([1, 2, 3, 4], 50)`` is 2.5."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100.0
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median(values: Sequence[float]) -> float:
    """Return the middle value, the mean of the two middle ones for an even number."""
    return quantile(values, 50.0)


def summary(values: Sequence[float]) -> Dict[str, Any]:
    """Describe latencies in milliseconds: count, median, mean, percentiles, extremes, variation.

    ``cov`` is the standard deviation over the mean; trtexec warns above 0.025 that the clock of the
    GPU is not locked.
    """
    count = len(values)
    mean = sum(values) / count
    spread = (sum((value - mean) ** 2 for value in values) / count) ** 0.5
    return {
        "n": count,
        "median": median(values),
        "mean": mean,
        "p90": quantile(values, 90.0),
        "p95": quantile(values, 95.0),
        "p99": quantile(values, 99.0),
        "min": min(values),
        "max": max(values),
        "cov": spread / mean if mean > 0 else 0.0,
    }


def unsettled_because(samples: List[float]) -> str:
    """Say why samples, in the order they were taken, are not settled; empty where they are."""
    if len(samples) < MIN_SAMPLES:
        return "{} samples are fewer than {}".format(len(samples), MIN_SAMPLES)
    middle = median(samples)
    if middle <= 0:
        return "the clock did not advance"
    half = len(samples) // 2
    gap = abs(median(samples[:half]) - median(samples[half:])) / middle
    if gap > TOLERANCE:
        text = "the medians of the first and second half differ by {:.1f} %"
        return text.format(100 * gap)
    near = sum(abs(value - middle) <= TOLERANCE * middle for value in samples) / len(samples)
    if near < NEAR_SHARE:
        return "only {:.0f} % of the samples lie within 5 % of the median".format(100 * near)
    return ""
