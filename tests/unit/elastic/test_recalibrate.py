"""Re-estimated BatchNorm statistics by both rules, against sums written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elastic_export.elastic import recalibrate
from elastic_export.errors import UserError


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def _batches(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 6, 6, generator=generator) for size in sizes]


@pytest.mark.parametrize("variance", ["biased", "unbiased"])
def test_the_mean_over_equal_batches(variance: str) -> None:
    net, batches = _net(), _batches(3, 3)
    with torch.no_grad():
        seen = [net[0](x).transpose(0, 1).flatten(1) for x in batches]
    assert recalibrate(net, batches, variance=variance) > 0  # type: ignore[arg-type]
    means = torch.stack([x.mean(1) for x in seen]).mean(0)
    spreads = [((x - x.mean(1, keepdim=True)) ** 2).sum(1) for x in seen]
    less = 0 if variance == "biased" else 1
    variances = torch.stack([s / (x.shape[1] - less) for s, x in zip(spreads, seen, strict=True)])
    assert torch.allclose(net[1].running_mean, means, atol=1e-6)
    assert torch.allclose(net[1].running_var, variances.mean(0), atol=1e-6)
    assert not net[1].training


def test_biased_batches_count_by_their_images() -> None:
    net, batches = _net(), _batches(6, 2)
    with torch.no_grad():
        seen = [net[0](x).transpose(0, 1).flatten(1) for x in batches]
    recalibrate(net, batches, variance="biased")
    assert torch.allclose(
        net[1].running_mean, (6 * seen[0].mean(1) + 2 * seen[1].mean(1)) / 8, atol=1e-6
    )
    variances = [x.var(1, correction=0) for x in seen]
    assert torch.allclose(net[1].running_var, (6 * variances[0] + 2 * variances[1]) / 8, atol=1e-6)


def test_hooks_and_momenta_are_as_before() -> None:
    net = _net()
    recalibrate(net, _batches(2), variance="biased")
    assert net[1].momentum == 0.1
    assert not net[1]._forward_pre_hooks


def test_no_images() -> None:
    with pytest.raises(UserError, match="no images"):
        recalibrate(_net(), [], variance="biased")
