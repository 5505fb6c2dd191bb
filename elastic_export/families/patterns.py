"""N:M choices of a family's layers: their type and what makes them possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from elastic_export.space import Costs, Space, density, hardware_density
from elastic_export.space.cost import reduction_block

__all__ = ["MacSum", "Patterns", "check_patterns_of"]

Patterns = Annotated[tuple[str, ...], Field(min_length=1)]


def check_patterns_of(
    nm: tuple[str, ...],
    nm_of: Mapping[str, tuple[str, ...]],
    layers: Mapping[str, set[int]],
) -> None:
    """Check the pattern choices of a family's layers.

    Args:
        nm: The choices of all layers.
        nm_of: Layers with choices of their own.
        layers: Every layer that may be sparse, with the input widths it may have.

    Raises:
        ValueError: Choices are not listed from sparse to dense, a layer does not exist, or an
            input width is not a multiple of M.
    """
    unknown = sorted(nm_of.keys() - layers.keys())
    if unknown:
        raise ValueError(f"nm_of names {unknown[0]}, which is no layer that can be sparse")
    for name, patterns in (("nm", nm), *nm_of.items()):
        kept = [density(p) for p in patterns]
        if kept != sorted(kept) or len(set(patterns)) < len(patterns):
            raise ValueError(f"{name} must list different patterns from sparse to dense")
    for layer, sizes in layers.items():
        for pattern in nm_of.get(layer, nm):
            odd = sorted(k for k in sizes if k % reduction_block(pattern))
            if odd:
                raise ValueError(
                    f"{pattern} needs widths that are multiples of its M, not {odd} ({layer})"
                )


class MacSum:
    """MACs of a population, summed up part by part: dense, algorithmic and hardware ones.

    Args:
        space: The family's space; the axis ``LAYER.nm`` says how sparse a layer is.
        genes: The population, one row each (n, axes).
    """

    def __init__(self, space: Space, genes: np.ndarray) -> None:
        self._space, self._genes = space, genes
        self._dense = np.zeros(len(genes), dtype=np.int64)
        self._shares = [np.zeros(len(genes)) for _ in (density, hardware_density)]

    def add(self, macs: np.ndarray | int) -> None:
        """Add what is never sparse; int (n,)."""
        self._dense += macs
        for share in self._shares:
            share += macs

    def add_layer(self, layer: str, macs: np.ndarray) -> None:
        """Add a layer that may be sparse; its dense MACs (n,)."""
        self._dense += macs
        axis = f"{layer}.nm"
        for total, share in zip(self._shares, (density, hardware_density), strict=True):
            if axis in self._space.index:
                column = self._space.index[axis]
                kept = np.array([share(str(p)) for p in self._space.axes[column].choices])
                total += macs * kept[self._genes[:, column]]
            else:
                total += macs

    def costs(self, params: np.ndarray) -> Costs:
        """The sums with the parameters (n,)."""
        algorithmic, hardware = (total.round().astype(np.int64) for total in self._shares)
        return Costs(self._dense, algorithmic, hardware, params)
