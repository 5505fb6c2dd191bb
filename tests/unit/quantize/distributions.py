"""Samples of known distributions, and the exact squared error of a range on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu

from elastic_export.quantize.histogram import Histogram
from elastic_export.quantize.record import Site

VALUES = 100_000

KINDS = (
    "normal",
    "laplace",
    "student-t",
    "uniform",
    "relu",
    "gelu",
    "outliers",
    "sparse",
    "few values",
    "constant",
    "bimodal",
    "far outlier",
    "negative",
    "scarce",
)


def sample(kind: str, n: int = VALUES) -> Tensor:
    torch.manual_seed(3)
    if kind == "laplace":
        return torch.distributions.Laplace(0.0, 1.0).sample((n,))
    if kind == "student-t":
        return torch.distributions.StudentT(3.0).sample((n,))
    if kind == "uniform":
        return torch.rand(n) * 2 - 1
    if kind == "negative":
        return -torch.rand(n).square()
    if kind == "few values":
        return torch.tensor([0.3, -1.0, 2.7])[torch.randint(0, 3, (n,))]
    if kind == "constant":
        return torch.full((n,), 3.7)
    if kind == "scarce":
        return torch.randn(20)
    x = torch.randn(n)
    if kind == "relu":
        return x.relu()
    if kind == "gelu":
        return gelu(2 * x)
    if kind == "bimodal":
        return x / 10 + torch.where(torch.arange(n) % 2 == 0, 5.0, -3.0)
    if kind == "outliers":
        x[:10] = 100.0
    if kind == "far outlier":
        x[7] = 400.0
    if kind == "sparse":
        x[torch.arange(n) % 50 != 0] = 0.0
        x[1:4] = torch.tensor([60.0, -80.0, 90.0])
    return x


def collected(x: Tensor, batches: int = 4, *, sums: bool = True) -> Histogram:
    histogram = Histogram(sums=sums)
    for batch in x.chunk(batches):
        histogram.collect(batch)
    return histogram


def symmetric_error(x: Tensor, amax: float) -> float:
    """Mean squared error on the grid of -127..127 that ``Site.scale`` makes."""
    scale = float(_site(-amax, amax).scale)
    x = x.double()
    return float(((x / scale).round().clamp(-127, 127) * scale - x).square().mean())


def affine_error(x: Tensor, low: float, high: float) -> float:
    """Mean squared error on the grid of 0..255 that ``Site.affine_u8`` makes."""
    scale32, zero = _site(low, high).affine_u8()
    scale = float(scale32)
    x = x.double()
    levels = ((x / scale).round() + zero).clamp(0, 255) - zero
    return float((levels * scale - x).square().mean())


def _site(low: float, high: float) -> Site:
    return Site("m", "input", low, high, np.asarray(high, dtype=np.float32), None, "int8")
