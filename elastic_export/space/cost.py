"""Costs of whole populations: dense, algorithmic (N:M as N/M) and hardware MACs, parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elastic_export.errors import UserError

__all__ = ["Costs", "density", "hardware_density", "reduction_block"]


@dataclass(frozen=True)
class Costs:
    """Four int64 arrays of shape (n,), one entry a descendant.

    ``macs`` counts one multiply-add as one MAC: convolutions, linear layers and the two attention
    products; norms, activations and softmax are not counted. ``algorithmic_macs`` counts an N:M
    layer as N/M of its dense MACs, ``hardware_macs`` what sparse tensor cores really skip (one
    half from 2:4 on, never more). ``params`` counts every learnable value, zeros included.
    """

    macs: np.ndarray
    algorithmic_macs: np.ndarray
    hardware_macs: np.ndarray
    params: np.ndarray


def reduction_block(pattern: str) -> int:
    """The group length M of an N:M pattern; 1 for dense.

    Raises:
        UserError: The text is not a pattern.
    """
    return _parse(pattern)[1]


def density(pattern: str) -> float:
    """The kept share of weights: ``density("1:4")`` is 0.25, of ``dense`` 1.0."""
    n, m = _parse(pattern)
    return n / m


def hardware_density(pattern: str) -> float:
    """The share of MACs that 2:4 sparse tensor cores execute.

    They know 2:4 alone, so ``1:4`` costs 0.5 like ``2:4``; ``3:4``, ``4:8`` and ``dense`` cost
    1.0 (a 4:8 group may hold four values in one half of it).
    """
    n, m = _parse(pattern)
    return 0.5 if m == 4 and n <= 2 else 1.0


def _parse(pattern: str) -> tuple[int, int]:
    if pattern == "dense":
        return 1, 1
    try:
        n, m = (int(part) for part in pattern.split(":"))
    except (ValueError, AttributeError):
        n, m = 0, 0
    if not 0 < n <= m:
        raise UserError(
            f"{pattern!r} is not a sparsity pattern.",
            'Write dense or N:M with 0 < N <= M, for example "2:4".',
        )
    return n, m
