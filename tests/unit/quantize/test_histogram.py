from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from distributions import KINDS, collected, sample, symmetric_error

from elastic_export.quantize.histogram import Histogram


@pytest.mark.parametrize("batches", [1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_percentiles_are_right_on_known_distributions(kind: str, batches: int) -> None:
    x = sample(kind)
    histogram = collected(x, batches)
    for percent in (90.0, 99.0, 99.9, 99.99):
        exact = float(np.percentile(x.abs().numpy(), percent, method="inverted_cdf"))
        # A range of zero would erase the rest, so a percentile of zeros takes everything.
        exact = exact or histogram.maximum
        assert abs(histogram.percentile(percent) - exact) <= histogram.limit / 2048
    assert histogram.percentile(100.0) == float(x.abs().max())


def test_no_value_is_lost_when_the_limit_grows() -> None:
    histogram = Histogram()
    for scale in (1e-6, 1.0, 3.0, 1e5, 2.0):
        histogram.collect(torch.full((1000,), scale))
    assert histogram.total == 5000
    assert histogram.maximum == pytest.approx(1e5)
    assert len(histogram.counts) == 2048
    assert histogram.percentile(79.9) < 1e5 / 1000


def test_counts_stay_exact_where_float32_would_not() -> None:
    histogram = Histogram()
    histogram.collect(torch.cat([torch.full((1 << 24,), 0.1), torch.full((3,), 1.0)]))
    histogram.collect(torch.full((1 << 12,), 0.1))
    assert histogram.total == (1 << 24) + (1 << 12) + 3


def test_zeros_and_empty() -> None:
    histogram = Histogram()
    histogram.collect(torch.zeros(10))
    assert (histogram.percentile(99.0), histogram.entropy()) == (0.0, 0.0)
    histogram.collect(torch.cat([torch.zeros(990), torch.full((1,), 4.0)]))
    assert histogram.percentile(99.0) == 4.0
    assert Histogram().percentile(99.0) == 0.0


def _entropy_by_the_book(counts: np.ndarray) -> int:
    """The published search, bin by bin, over every candidate."""
    counts = counts.astype(float).copy()
    counts[0] = counts[1]
    best, best_divergence = 0, np.inf
    for stop in range(128, len(counts) + 1):
        reference = counts[:stop].copy()
        reference[-1] += counts[stop:].sum()
        candidate = np.zeros(stop)
        edges = np.linspace(0, stop, 129)
        level = np.digitize(np.arange(stop), edges) - 1
        for q in range(128):
            members = [i for i in np.flatnonzero(level == q) if counts[i] > 0]
            for i in members:
                candidate[i] = counts[members].sum() / len(members)
        p, q_ = reference / reference.sum(), candidate / candidate.sum()
        held = p > 0
        with np.errstate(divide="ignore"):
            divergence = np.sum(p[held] * np.log(p[held] / q_[held]))
        if divergence <= best_divergence:
            best, best_divergence = stop, divergence
    return best


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "uniform"])
def test_entropy_equals_the_published_search(kind: str) -> None:
    torch.manual_seed(4)
    x = sample(kind)[:30_000]
    histogram = collected(x, 1)
    merged = histogram.counts.reshape(256, 8).sum(axis=1)
    exact = _entropy_by_the_book(merged) * histogram.limit / 256
    assert histogram.entropy() == pytest.approx(min(exact, histogram.maximum), rel=0.02)


# Squared error relative to that of the largest value's range: a bound for each distribution. Only
# least squared error is never worse; "sparse" loses three outliers that are all its energy.
ENTROPY = {"student-t": 2.5, "sparse": 10.0}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "scarce"])
def test_entropy_is_close_to_max_or_better_with_enough_data(kind: str) -> None:
    x = sample(kind, 200_000)
    histogram = collected(x)
    entropy = symmetric_error(x, histogram.entropy())
    assert entropy <= ENTROPY.get(kind, 1.1) * symmetric_error(x, histogram.maximum)


@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99])
@pytest.mark.parametrize("kind", KINDS)
def test_a_percentile_loses_what_it_cuts_off_and_no_more(kind: str, percent: float) -> None:
    x = sample(kind)
    histogram = collected(x)
    amax = histogram.percentile(percent)
    cut = (x.abs() - amax).clamp_min(0).double().square().mean()
    # Every value that is kept is at most half a step away.
    assert symmetric_error(x, amax) <= float(cut) + (amax / 127 / 2) ** 2 * (1 + 1e-6)
    width = histogram.limit / 2048
    assert float((x.abs() > amax + width).double().mean()) <= 1 - percent / 100 + 1e-9


def test_entropy_loses_no_cluster() -> None:
    # With one bin inside the divergence is zero, which once cut off half of these values.
    assert collected(sample("bimodal")).entropy() > 5.0


@pytest.mark.parametrize("sums", [False, True])
def test_a_state_goes_on_bit_by_bit(sums: bool) -> None:
    x = torch.cat([sample("gelu", 10_000), 9 * sample("normal", 10_000)])
    first, second, whole = (Histogram(sums=sums) for _ in range(3))
    first.collect(x[:10_000])
    second.load(first.state())
    first.collect(x[:5])  # What goes on elsewhere does not reach the copy.
    second.collect(x[10_000:])
    whole.collect(x[:10_000])
    whole.collect(x[10_000:])
    assert np.array_equal(second.sides, whole.sides)
    assert (second.zeros, second.limit) == (whole.zeros, whole.limit)
    assert second.maximum == whole.maximum
    if sums:
        assert second.sums.tobytes() == whole.sums.tobytes()
        assert second.sums.sum() == pytest.approx(float(x.abs().double().sum()), rel=1e-9)


def test_the_sides_are_apart() -> None:
    histogram = Histogram()
    histogram.collect(torch.tensor([-4.0, -4.0, -1.0, 0.0, 2.0, 4.0]))
    assert histogram.sides.sum(axis=1).tolist() == [2, 3]
    assert (histogram.sides[1, -1], histogram.sides[0, -1], histogram.zeros) == (2, 1, 1)


def test_entropy_cuts_a_long_tail() -> None:
    histogram = collected(sample("laplace"), 4)
    assert 4.0 < histogram.entropy() < 0.9 * histogram.maximum


def test_entropy_takes_milliseconds() -> None:
    histogram = collected(sample("normal"), 4)
    started = time.process_time()
    histogram.entropy()
    assert time.process_time() - started < 0.5
