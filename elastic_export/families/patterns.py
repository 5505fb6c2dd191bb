"""N:M choices of a family's layers: their type and what makes them possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from elastic_export.space import density
from elastic_export.space.cost import reduction_block

__all__ = ["Patterns", "check_patterns_of"]

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
