"""Ranges of least squared error, judged by the exact error on the values themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.quantize.calibrate import calibrate
from elastic_export.quantize.histogram import Histogram
from elastic_export.quantize.record import Site, quantize_int8
from elastic_export.quantize.squared_error import affine_bounds, symmetric_limit, weight_limits

sys.path.insert(0, str(Path(__file__).parent))

from distributions import KINDS, affine_error, collected, sample, symmetric_error

SHARES = np.linspace(0.02, 1.0, 99)


@pytest.mark.parametrize("batches", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_the_symmetric_grid_is_never_worse_than_max_and_near_the_best(kind, batches) -> None:
    x = sample(kind)
    full = float(x.abs().max())
    limit = symmetric_limit(collected(x, batches))
    error, of_max = symmetric_error(x, limit), symmetric_error(x, full)
    best = min(symmetric_error(x, full * share) for share in SHARES)
    assert 0 < limit <= full
    assert error <= of_max
    # What lies within 2.5 % of the full range's error cannot be told apart from it for sure.
    assert error <= max(1.02 * best, best + 0.025 * of_max)


@pytest.mark.parametrize("batches", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_the_asymmetric_grid_is_never_worse_than_min_and_max(kind, batches) -> None:
    x = sample(kind)
    low, high = float(x.min()), float(x.max())
    bounds = affine_bounds(collected(x, batches), low, high)
    error, of_all = affine_error(x, *bounds), affine_error(x, low, high)
    assert low <= bounds[0] <= bounds[1] <= high
    assert error <= of_all
    best = min(affine_error(x, min(low, 0.0), max(high, 0.0) * share) for share in SHARES)
    # 255 steps leave fewer bins to each, so more of the full range's error is uncertain.
    assert error <= best + 0.08 * of_all


@pytest.mark.parametrize(("kind", "gain"), [("normal", 0.9), ("laplace", 0.85), ("gelu", 0.9)])
def test_long_tails_really_gain(kind: str, gain: float) -> None:
    x = sample(kind)
    histogram = collected(x)
    full = histogram.maximum
    assert symmetric_error(x, symmetric_limit(histogram)) < gain * symmetric_error(x, full)
    low, high = float(x.min()), float(x.max())
    bounds = affine_bounds(histogram, low, high)
    assert affine_error(x, *bounds) < gain * affine_error(x, low, high)


def test_the_asymmetric_grid_is_searched_apart() -> None:
    x = sample("gelu")
    histogram = collected(x)
    low, high = float(x.min()), float(x.max())
    limit = symmetric_limit(histogram)
    apart = affine_error(x, *affine_bounds(histogram, low, high))
    assert apart < 0.8 * affine_error(x, max(low, -limit), min(high, limit))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    repeats=st.integers(1, 50),
    seed=st.integers(0, 3),
)
def test_no_values_make_it_worse_than_max(values, repeats, seed) -> None:
    x = torch.tensor(values).repeat(repeats)
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) * 0.01 * seed
    histogram = collected(x, 3)
    low, high = float(x.min()), float(x.max())
    full = histogram.maximum
    rounding = 1e-12 * full * full
    if full > 0:
        error = symmetric_error(x, symmetric_limit(histogram))
        assert error <= symmetric_error(x, full) + rounding
    bounds = affine_bounds(histogram, low, high)
    assert affine_error(x, *bounds) <= affine_error(x, low, high) + rounding


def test_nothing_and_zeros() -> None:
    histogram = Histogram(sums=True)
    assert symmetric_limit(histogram) == 0.0
    histogram.collect(torch.zeros(5))
    assert symmetric_limit(histogram) == 0.0
    assert affine_bounds(histogram, 0.0, 0.0) == (0.0, 0.0)


def _weight_error(weight: torch.Tensor, amax: np.ndarray) -> np.ndarray:
    site = Site("m", "weight", -1.0, 1.0, amax, 0, "int8")
    values = weight.numpy()
    shape = (-1, *[1] * (values.ndim - 1))
    rounded = quantize_int8(values, site) * site.scale.astype(np.float64).reshape(shape)
    return np.square(rounded - values).reshape(len(values), -1).sum(axis=1)


@pytest.mark.parametrize("shape", [(24, 3000), (16, 8, 3, 3), (300, 1500), (5, 1)])
def test_no_channel_of_a_weight_is_worse_than_with_its_largest_value(shape) -> None:
    torch.manual_seed(0)
    weight = torch.distributions.StudentT(4.0).sample(shape)
    weight[0] = 0.0
    weight[1] = 0.25
    amax = weight_limits(weight)
    full = weight.abs().flatten(1).amax(1).numpy()
    exact, of_max = _weight_error(weight, amax), _weight_error(weight, full)
    assert amax.dtype == np.float32
    assert amax.shape == (shape[0],)
    assert amax[0] == 0
    assert np.all(amax <= full)
    assert np.all(exact <= of_max * (1 + 1e-6) + 1e-12)
    if weight[0].numel() > 1000:
        assert exact.sum() < 0.995 * of_max.sum()


def test_every_site_of_a_network_is_never_worse_than_max(net, make_split) -> None:
    split = make_split(64)
    recipe = {"name": "t", "images": 64, "batch_size": 20}
    best = calibrate(net, split, CalibrationRecipe(method="mse", **recipe))
    full = calibrate(net, split, CalibrationRecipe(method="max", **recipe))
    assert best.calibrator == "mse"
    seen: dict[str, torch.Tensor] = {}
    layer = net.get_submodule("hidden")
    handle = layer.register_forward_hook(
        lambda _, args, out: seen.update(input=args[0].flatten(), output=out.flatten())
    )
    with torch.no_grad():
        net(split.head(64).x)
    handle.remove()
    for role, x in seen.items():
        ours, theirs = best.site("hidden", role), full.site("hidden", role)
        assert symmetric_error(x, float(ours.amax)) <= symmetric_error(x, float(theirs.amax))
        error = affine_error(x, ours.min, ours.max)
        assert error <= affine_error(x, theirs.min, theirs.max)
    weight = layer.weight.detach()
    ours, theirs = best.site("hidden", "weight").amax, full.site("hidden", "weight").amax
    assert np.all(_weight_error(weight, ours) <= _weight_error(weight, theirs) * (1 + 1e-6))


def test_zeros_of_a_pattern_stay_zeros(make_split) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)).eval()
    with torch.no_grad():
        net[1].weight[:, 1::2] = 0.0
    recipe = CalibrationRecipe(name="t", method="mse", images=24)
    record = calibrate(net, make_split(), recipe)
    rounded = quantize_int8(net[1].weight.detach().numpy(), record.site("1", "weight"))
    assert not rounded[:, 1::2].any()
    assert rounded[:, ::2].any()
