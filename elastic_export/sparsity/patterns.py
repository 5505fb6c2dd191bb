"""N:M patterns on one weight.

Groups of M consecutive values lie along the reduction axis (axis 1 of a Linear ``(out, in)`` and
of a Conv2d ``(out, in, kh, kw)``, for each kernel position by itself): the axis the sparse tensor
cores of Ampere read (NVIDIA TensorRT, sample utilities; Mishra et al., arXiv 2104.08378).
"""

from __future__ import annotations

import torch

from elastic_export.space.cost import density, reduction_block

__all__ = ["measured_density", "pattern_holds", "pattern_mask"]


def _grouped(weight: torch.Tensor, m: int, dim: int) -> torch.Tensor:
    size = weight.shape[dim]
    if size % m:
        raise ValueError(f"the reduction axis has {size} values, not a multiple of {m}")
    return weight.movedim(dim, -1).reshape(-1, size // m, m)


def pattern_mask(weight: torch.Tensor, pattern: str, dim: int = 1) -> torch.Tensor:
    """Keep the N largest magnitudes of each group of M; ties keep the lower index.

    Masks of one weight are nested: what 1:4 keeps, 2:4 keeps too.

    Args:
        weight: Any float tensor whose ``dim`` is a multiple of M.
        pattern: ``"2:4"``, or ``"dense"`` for all true.
        dim: The reduction axis.

    Returns:
        A bool tensor of the weight's shape, true where kept. The row ``[0.1, -3, 2, 0.5]`` under
        2:4 gives ``[False, True, True, False]``.

    Raises:
        ValueError: The reduction axis is not a multiple of M.
    """
    m = reduction_block(pattern)
    if m == 1:
        return torch.ones_like(weight, dtype=torch.bool)
    n = round(density(pattern) * m)
    groups = _grouped(weight.detach().abs(), m, dim)
    order = groups.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    moved = weight.movedim(dim, -1)
    return mask.reshape(moved.shape).movedim(-1, dim).contiguous()


def pattern_holds(weight: torch.Tensor, pattern: str, dim: int = 1) -> bool:
    """Tell whether no group of M holds more than N values other than zero."""
    m = reduction_block(pattern)
    if m == 1:
        return True
    if weight.shape[dim] % m:
        return False
    n = round(density(pattern) * m)
    return bool(((_grouped(weight, m, dim) != 0).sum(-1) <= n).all())


def measured_density(weight: torch.Tensor) -> float:
    """The share of values other than zero."""
    return int(torch.count_nonzero(weight)) / max(1, weight.numel())
