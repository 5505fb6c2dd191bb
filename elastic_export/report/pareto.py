"""Pareto fronts: least cost, most value."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["front"]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points that no other beats: none costs less or equal and is worth more or equal.

    Args:
        points: (cost, value) pairs; cost is to be small, value large.

    Returns:
        Indices by rising cost, so by rising value too. Of equal points the first is kept:
        ``front([(2, 5), (1, 3), (3, 4), (1, 3)])`` is ``[1, 0]``.
    """
    by_cost = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    found: list[int] = []
    for index in by_cost:
        if not found or points[index][1] > points[found[-1]][1]:
            found.append(index)
    return found
