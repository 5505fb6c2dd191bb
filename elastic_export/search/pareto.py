"""The Pareto front of two objectives."""

from __future__ import annotations

import numpy as np

__all__ = ["pareto_front"]


def pareto_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Find the points for which no other is at least as cheap and at least as good.

    Of points equal in both, the first is kept.

    Args:
        cost: To be small, (n,).
        value: To be large, (n,).

    Returns:
        Indices of the front by ascending cost, so by ascending value too.

    Example:
        ``pareto_front(np.array([3, 1, 2]), np.array([90, 80, 70]))`` is ``[1, 0]``.
    """
    cost, value = np.asarray(cost), np.asarray(value)
    if len(cost) == 0:
        return np.zeros(0, dtype=np.int64)
    order = np.lexsort((np.arange(len(cost)), -value, cost))
    sorted_value = value[order]
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(sorted_value)[:-1]))
    return order[sorted_value > best_before]
