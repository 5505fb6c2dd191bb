"""The asymmetric UINT8 form of an activation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from elastic_export.quantize.record import Site

__all__ = ["Affine", "affine_of", "clipped"]


@dataclass(frozen=True)
class Affine:
    """``real = scale * (code - zero_point)`` with codes 0 to 255."""

    scale: np.float32
    zero_point: int


def affine_of(site: Site) -> Affine:
    """Return the form that covers the site's range and represents zero exactly."""
    scale, zero_point = site.affine_u8()
    return Affine(scale, zero_point)


def clipped(site: Site, low: float, high: float) -> Site:
    """Return the site of the same tensor after clipping to ``low`` and ``high``."""
    smallest, largest = min(max(site.min, low), high), min(max(site.max, low), high)
    return replace(site, min=smallest, max=largest)
