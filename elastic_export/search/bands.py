"""Cost bands: the ranges that each give one descendant."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from elastic_export.errors import UserError

__all__ = ["band_of", "bands"]


def bands(low: float, high: float, keep: int) -> list[tuple[float, float]]:
    """Divide a cost range into bands of equal ratio.

    Args:
        low: Lower end in MACs, above 0.
        high: Upper end in MACs; equal to ``low`` only for one band.
        keep: Number of bands.

    Returns:
        Ascending ``(low, high)`` pairs; each ends where the next begins. A cost that lies on
        such a border belongs to the upper band (see :func:`band_of`).

    Raises:
        UserError: The range cannot be divided so.

    Example:
        ``bands(1e6, 8e6, 3)`` is ``[(1e6, 2e6), (2e6, 4e6), (4e6, 8e6)]``.
    """
    if not (0 < low <= high and keep >= 1 and (low < high or keep == 1)):
        raise UserError(
            f"MACs from {low:.6g} to {high:.6g} cannot be divided into {keep} bands.",
            "Give a range above 0 whose first number is the smaller, and keep at least 1.",
        )
    edges = np.geomspace(low, high, keep + 1)
    # geomspace meets its ends only up to rounding, and an end must not fall out of its band.
    edges[0], edges[-1] = low, high
    return [(float(a), float(b)) for a, b in pairwise(edges)]


def band_of(macs: np.ndarray, ranges: list[tuple[float, float]]) -> np.ndarray:
    """Tell the band of each cost: int (n,), -1 for a cost outside all bands.

    The last band includes its upper end, the others do not.
    """
    edges = np.array([low for low, _ in ranges] + [ranges[-1][1]])
    band = np.searchsorted(edges, macs, side="right") - 1
    band = np.where(macs == edges[-1], len(ranges) - 1, band)
    return np.where(band >= len(ranges), -1, band)
