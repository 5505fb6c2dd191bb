from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from elastic_export.quantize.histogram import Histogram

VALUES = 200_000


def _sample(kind: str) -> Tensor:
    torch.manual_seed(3)
    if kind == "normal":
        return torch.randn(VALUES)
    if kind == "uniform":
        return torch.rand(VALUES) * 2 - 1
    if kind == "laplace":
        return torch.distributions.Laplace(0.0, 1.0).sample((VALUES,))
    if kind == "relu":
        return torch.randn(VALUES).relu()
    return torch.cat([torch.randn(VALUES - 10), torch.full((10,), 100.0)])


KINDS = ["normal", "uniform", "laplace", "relu", "outlier"]


def _collected(x: Tensor, batches: int) -> Histogram:
    histogram = Histogram()
    for batch in x.chunk(batches):
        histogram.collect(batch)
    return histogram


@pytest.mark.parametrize("batches", [1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_percentiles_are_right_on_known_distributions(kind: str, batches: int) -> None:
    x = _sample(kind)
    histogram = _collected(x, batches)
    for percent in (90.0, 99.0, 99.9, 99.99):
        exact = float(np.percentile(x.abs().numpy(), percent, method="inverted_cdf"))
        error = abs(histogram.percentile(percent) - exact)
        assert error <= histogram.limit / 2048
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
    x = _sample(kind)[:30_000]
    histogram = _collected(x, 1)
    merged = histogram.counts.reshape(256, 8).sum(axis=1)
    exact = _entropy_by_the_book(merged) * histogram.limit / 256
    assert histogram.entropy() == pytest.approx(min(exact, histogram.maximum), rel=0.02)


def _squared_error(x: Tensor, amax: float) -> float:
    step = amax / 127
    return float(((x / step).round().clamp(-128, 127) * step - x).square().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_close_to_max_or_better_with_enough_data(kind: str) -> None:
    x = _sample(kind)
    histogram = _collected(x, 4)
    entropy = _squared_error(x, histogram.entropy())
    assert entropy <= 1.1 * _squared_error(x, histogram.maximum)


def test_entropy_cuts_a_long_tail() -> None:
    histogram = _collected(_sample("laplace"), 4)
    assert 4.0 < histogram.entropy() < 0.9 * histogram.maximum


def test_entropy_takes_milliseconds() -> None:
    histogram = _collected(_sample("normal"), 4)
    started = time.process_time()
    histogram.entropy()
    assert time.process_time() - started < 0.5
