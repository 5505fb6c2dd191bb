"""Allocation: how much of which layer is removed for a given sparsity, and by which masks.

*Sparsity* is the removed share everywhere. The five methods and their rounding are those of
SparsifyViT (shadowpa0327/SparsifyViT, commit bb74c8d), which has them from LAMP (Lee et al.,
arXiv 2010.07611; jaeho-lee/layer-adaptive-sparsity). Its counts are computed in float32, and a
count that lies between two integers falls as it does there; so do the sums here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from elastic_export.errors import UserError, did_you_mean

__all__ = ["METHODS", "allocate", "magnitude_mask", "masks_of"]

_LAST_KEPT = 0.2
"""Share of the last layer that ``unifplus`` always keeps."""


def allocate(method: str, weights: Mapping[str, Tensor], sparsity: float) -> dict[str, float]:
    """The share of each layer that a method removes.

    Args:
        method: One of ``METHODS``: ``unif`` removes the same share everywhere; ``unifplus`` too,
            but keeps a fifth of the last layer and all of a first convolution; ``glob`` removes
            the smallest values of all layers together; ``lamp`` does so after dividing each square
            by the sum of those that are not smaller; ``erk`` keeps a density in proportion to
            (n_in + n_out) / (n_in n_out) (RigL, arXiv 1911.11134).
        weights: Layer name to weight, float, in the network's order.
        sparsity: Share of all values to remove, 0 <= sparsity < 1.

    Returns:
        Layer name to removed share. Half of DeiT-S by ``erk``: 0.5 of each qkv, 0.25 of each proj,
        0.531 of each fc1 and fc2.

    Raises:
        UserError: The method is unknown, the sparsity is outside its range, or the method cannot
            remove that much.
    """
    if method not in METHODS:
        raise UserError(
            f'There is no allocation method "{method}".', did_you_mean(str(method), list(METHODS))
        )
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise UserError(
            f"The sparsity {sparsity!r} is not a share that can be removed.",
            "Give the removed share as a number of 0 or more and below 1, such as 0.65.",
        )
    if not weights:
        raise UserError("There is no layer to allocate sparsity to.", "Check the checkpoint.")
    return dict(zip(weights, METHODS[method](list(weights.values()), sparsity), strict=True))


def magnitude_mask(weight: Tensor, share: float) -> Tensor:
    """Remove the ``round(share x n)`` smallest magnitudes of one layer's n values.

    Returns:
        A bool tensor of the weight's shape, true where kept.
    """
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    count = round(share * weight.numel())
    if count:
        mask[weight.detach().abs().reshape(-1).topk(count, largest=False).indices] = False
    return mask.reshape(weight.shape)


def masks_of(weights: Mapping[str, Tensor], shares: Mapping[str, float]) -> dict[str, Tensor]:
    """Magnitude masks of every layer for what :func:`allocate` returned."""
    return {name: magnitude_mask(weight, shares[name]) for name, weight in weights.items()}


def _counts(weights: list[Tensor]) -> Tensor:
    return torch.tensor([float(weight.numel()) for weight in weights])


def _unif(weights: list[Tensor], sparsity: float) -> list[float]:
    return [sparsity] * len(weights)


def _glob(weights: list[Tensor], sparsity: float) -> list[float]:
    """The threshold lies over all layers; each layer's share follows from what falls below it."""
    magnitudes = torch.cat([weight.detach().abs().reshape(-1) for weight in weights])
    removed = torch.zeros(len(magnitudes), dtype=torch.bool)
    count = round(sparsity * len(magnitudes))
    if count:
        removed[magnitudes.topk(count, largest=False).indices] = True
    parts = removed.split([weight.numel() for weight in weights])
    return [int(part.sum()) / max(1, len(part)) for part in parts]


def _unifplus(weights: list[Tensor], sparsity: float) -> list[float]:
    counts = _counts(weights)
    first = 1 if weights[0].dim() == 4 else 0
    removed = torch.round(counts.sum() * sparsity)
    share = removed / counts[first:].sum()
    least = torch.round(counts[-1] * _LAST_KEPT)
    shares = torch.zeros(len(weights))
    shares[first:] = share
    if torch.round((1.0 - share) * counts[-1]) < least:
        last = counts[-1] - least
        shares[first:-1] = (removed - last) / counts[first:-1].sum()
        shares[-1] = last / counts[-1]
    if not bool((shares <= 1.0).all()):
        raise UserError(
            f"unifplus cannot remove {sparsity} of these layers: it keeps a fifth of the last one "
            "and a first convolution whole.",
            "Choose a lower sparsity, or the method unif.",
        )
    return shares.tolist()


def _lamp(weights: list[Tensor], sparsity: float) -> list[float]:
    counts = _counts(weights)
    kept = int(torch.round(counts.sum() * (1.0 - sparsity)))
    if kept < 1:
        raise UserError(
            f"lamp cannot remove {sparsity} of these layers: nothing would be left.",
            "Choose a lower sparsity.",
        )
    scores = [_lamp_scores(weight) for weight in weights]
    threshold = torch.cat(scores).topk(kept).values[-1]
    survivors = torch.tensor([float((score >= threshold).sum()) for score in scores])
    return (1.0 - survivors / counts).tolist()


def _lamp_scores(weight: Tensor) -> Tensor:
    """Each square over the sum of the squares that are not smaller, from small to large."""
    squares = weight.detach().reshape(-1).square()
    ordered = squares.sort().values
    before = torch.zeros_like(ordered)
    before[1:] = ordered.cumsum(0)[:-1]
    return ordered / (squares.sum() - before)


def _erk(weights: list[Tensor], sparsity: float) -> list[float]:
    """Where a layer would keep more than all, the worst is left dense and the rest share anew."""
    counts = _counts(weights)
    sizes = torch.tensor([float(sum(weight.shape)) for weight in weights])
    kept = (1.0 - sparsity) * counts.sum()
    dense = torch.zeros(len(weights))
    while True:
        free = sizes * (1.0 - dense)
        survivors = torch.round((kept - (dense * counts).sum()) * free / free.sum())
        ratios = torch.where(dense == 1, torch.zeros(()), survivors / counts)
        if not bool((ratios > 1.0).any()):
            return torch.where(dense == 1, torch.zeros(()), 1.0 - ratios).tolist()
        dense[int(ratios.argmax())] = 1.0


METHODS: dict[str, Callable[[list[Tensor], float], list[float]]] = {
    "lamp": _lamp,
    "glob": _glob,
    "unif": _unif,
    "unifplus": _unifplus,
    "erk": _erk,
}
"""Method name to function."""
