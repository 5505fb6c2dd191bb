"""Interleaved latency measurement with a rule that says when a figure may be trusted.

Candidates take turns, one sample each per round, so that a clock or load that drifts hits all of
them alike. The settled rule is the one of NVIDIA TensorRT-Model-Connect's performance matrix
(``tools/perf_matrix.py``): at least 10 samples, the medians of the two halves within 5 %, and at
least 80 % of the samples within 5 % of the median; a measurement that fails it is repeated once
and otherwise reported as inconclusive.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elastic_export.config.recipe import MeasureConfig
from elastic_export.config.result import Latency
from elastic_export.progress import Progress, no_progress

__all__ = ["MIN_SAMPLES", "TOLERANCE", "Timing", "measure_interleaved", "unsettled_because"]

MIN_SAMPLES = 10
TOLERANCE = 0.05
NEAR_SHARE = 0.8
MAX_CALLS_PER_SAMPLE = 20_000
MIN_WARMUP_CALLS = 3

Clock = Callable[[], float]
Candidates = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """What was measured of one candidate; times in milliseconds for one call.

    ``median_ms``, ``p90_ms``, ``p99_ms`` and ``cov`` (standard deviation / mean) are over all timed
    calls. ``sample_ms`` holds one figure per round, the median of that round's calls: two timings
    of one ``measure_interleaved`` are paired by it. ``unsettled_because`` is empty when settled.
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    cov: float
    samples: int
    runs: int
    settled: bool
    sample_ms: tuple[float, ...] = field(repr=False, default=())
    unsettled_because: str = ""

    def latency(
        self, *, runner: str, precision: str, batch_size: int, threads: int, machine: dict[str, Any]
    ) -> Latency:
        """Make the record that goes into a result file, with the conditions of the measurement."""
        return Latency(
            runner=runner,
            precision=precision,
            batch_size=batch_size,
            threads=threads,
            median_ms=self.median_ms,
            p90_ms=self.p90_ms,
            p99_ms=self.p99_ms,
            cov=self.cov,
            samples=self.samples,
            runs=self.runs,
            settled=self.settled,
            unsettled_because=self.unsettled_because,
            machine=machine,
        )


def measure_interleaved(
    candidates: Candidates,
    settings: MeasureConfig,
    *,
    progress: Progress = no_progress,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Time every candidate under the same conditions, turn by turn.

    Each candidate is warmed up for ``settings.warmup_ms``; the warm-up fixes how many calls make
    one sample of about ``settings.sample_ms``. Then come ``settings.min_samples`` rounds; a round
    takes one sample of every candidate, in an order that balances positions over the rounds.
    When any candidate is unsettled the whole set is measured once more, because only timings of
    the same rounds can be compared; the attempt in which more candidates settled counts.

    A sample of several calls begins with one untimed call, which brings the candidate's weights
    back into the caches. Garbage collection is off inside samples.

    Args:
        candidates: What to call, by name; each call must do the same work.
        settings: Warm-up, sample length and number of rounds.
        progress: One step per warm-up and per sample.
        clock: Seconds, monotonic. Its own cost (about 0.1 us) is part of each call.

    Returns:
        One timing per candidate, in the given order.
    """
    if not candidates:
        return {}
    rounds = settings.min_samples
    calls = _warm_up(candidates, settings, progress, clock)
    best = _attempt(candidates, calls, rounds, "Measuring latency", progress, clock)
    if rounds >= MIN_SAMPLES and not all(timing.settled for timing in best.values()):
        again = _attempt(candidates, calls, rounds, "Measuring once more", progress, clock)
        if _settled_count(again) >= _settled_count(best):
            best = again
    return best


def unsettled_because(samples: Sequence[float]) -> str:
    """Apply the settled rule to samples in the order they were taken.

    Returns:
        An empty string when settled, otherwise what fails, as in
        ``unsettled_because([1.0] * 5 + [1.2] * 5)`` ->
        ``'the medians of the first and second half differ by 18.2 %'``.
    """
    if len(samples) < MIN_SAMPLES:
        return f"{len(samples)} samples are fewer than {MIN_SAMPLES}"
    values = np.asarray(samples, dtype=np.float64)
    median = float(np.median(values))
    if median <= 0:
        return "the clock did not advance"
    half = len(values) // 2
    gap = abs(float(np.median(values[:half]) - np.median(values[half:]))) / median
    if gap > TOLERANCE:
        return f"the medians of the first and second half differ by {100 * gap:.1f} %"
    near = float(np.mean(np.abs(values - median) <= TOLERANCE * median))
    if near < NEAR_SHARE:
        return f"only {100 * near:.0f} % of the samples lie within 5 % of the median"
    return ""


def _settled_count(timings: Mapping[str, Timing]) -> int:
    return sum(timing.settled for timing in timings.values())


def _warm_up(
    candidates: Candidates, settings: MeasureConfig, progress: Progress, clock: Clock
) -> dict[str, int]:
    """Run every candidate until it is warm; return the calls that make one sample."""
    calls = {}
    progress.start("Warming up", len(candidates))
    try:
        for name, run in candidates.items():
            times: list[float] = []
            while len(times) < MIN_WARMUP_CALLS or sum(times) < settings.warmup_ms / 1e3:
                begin = clock()
                run()
                times.append(clock() - begin)
                if len(times) >= MAX_CALLS_PER_SAMPLE:
                    break
            # The later half: the first calls allocate and fill caches.
            typical = float(np.median(times[len(times) // 2 :]))
            wanted = round(settings.sample_ms / 1e3 / typical) if typical > 0 else 1
            calls[name] = min(max(wanted, 1), MAX_CALLS_PER_SAMPLE)
            progress.advance(note=name)
    finally:
        progress.finish()
    return calls


def _attempt(
    candidates: Candidates,
    calls: Mapping[str, int],
    rounds: int,
    label: str,
    progress: Progress,
    clock: Clock,
) -> dict[str, Timing]:
    names = list(candidates)
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    gc.collect()
    progress.start(label, rounds * len(names))
    try:
        for number in range(rounds):
            for name in _order(names, number):
                times[name].append(_sample(candidates[name], calls[name], clock))
                progress.advance(note=name)
    finally:
        progress.finish()
    return {name: _timing(times[name]) for name in names}


def _order(names: Sequence[str], number: int) -> list[str]:
    """Rotate, and run every second round backwards.

    Over ``2 * len(names)`` rounds each candidate comes in each position equally often, and before
    and after each neighbour equally often.
    """
    shift = (number // 2) % len(names)
    rotated = [*names[shift:], *names[:shift]]
    return rotated[::-1] if number % 2 else rotated


def _sample(run: Callable[[], object], calls: int, clock: Clock) -> list[float]:
    with _no_garbage_collection():
        if calls > 1:
            run()
        times = []
        for _ in range(calls):
            begin = clock()
            run()
            times.append(clock() - begin)
    return times


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _timing(samples: Sequence[Sequence[float]]) -> Timing:
    every = 1e3 * np.concatenate([np.asarray(sample, dtype=np.float64) for sample in samples])
    per_round = tuple(1e3 * float(np.median(sample)) for sample in samples)
    median, p90, p99 = (float(value) for value in np.percentile(every, [50, 90, 99]))
    mean = float(every.mean())
    reason = unsettled_because(per_round)
    return Timing(
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99,
        cov=float(every.std()) / mean if mean > 0 else 0.0,
        samples=len(per_round),
        runs=len(every),
        settled=not reason,
        sample_ms=per_round,
        unsettled_because=reason,
    )
