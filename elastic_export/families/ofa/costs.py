"""Costs of Once-for-all networks, layer by layer, for a whole population at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from elastic_export.space import Costs

__all__ = ["Leaf", "conv", "conv_norm", "half", "linear", "total"]

Number = int | np.ndarray


class Leaf(NamedTuple):
    """MACs and parameters of one layer: a number, or one for each individual (n,)."""

    macs: Number
    params: Number


def half(side: Number) -> Number:
    """The side after a stride of two that keeps the border."""
    return (side + 1) // 2


def conv(
    into: Number, out: Number, side: Number, kernel: Number, live: Number = 1, bias: bool = False
) -> Leaf:
    """A convolution whose output has ``side`` x ``side`` places; depthwise where ``into`` is 1."""
    weights = live * kernel * kernel * into * out
    return Leaf(weights * side * side, weights + live * out * bias)


def conv_norm(
    into: Number, out: Number, side: Number, kernel: Number, live: Number = 1
) -> Iterator[Leaf]:
    """A convolution without bias and its BatchNorm."""
    yield conv(into, out, side, kernel, live)
    yield Leaf(0, live * 2 * out)


def linear(into: Number, out: int) -> Leaf:
    """A linear layer with bias."""
    return Leaf(into * out, (into + 1) * out)


def total(leaves: Iterable[Leaf], n: int) -> Costs:
    """The sums for a population of ``n``."""
    macs, params = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for leaf in leaves:
        macs, params = macs + leaf.macs, params + leaf.params
    return Costs(macs, macs, macs, params)
