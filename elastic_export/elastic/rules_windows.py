"""Windowed attention: which place of a bias table a pair reads, and the mask of shifted windows.

Swin Transformer (Liu et al., arXiv 2103.14030) learns one number for each head and each offset
between two places of a window, and adds it to the scores of every pair that lies so. Every other
block rolls the map by half a window and keeps apart what is brought together by that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from elastic_export.elastic.rules import Rule, Tensors

__all__ = ["ConstantLike", "relative_position_index", "shifted_window_mask"]

BLOCKED = -100.0
"""What is added to the score of two places that a shift brought together (arXiv 2103.14030)."""


@lru_cache(maxsize=32)
def relative_position_index(window: int) -> Tensor:
    """The row of the bias table for each pair of places of a window.

    Args:
        window: Side of the window.

    Returns:
        int64 of shape (window^2, window^2). For ``window`` 2 the first row is ``[4, 3, 1, 0]``.
    """
    places = torch.arange(window)
    rows, columns = (grid.flatten() for grid in torch.meshgrid(places, places, indexing="ij"))
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right


@lru_cache(maxsize=32)
def shifted_window_mask(side: int, window: int, shift: int) -> Tensor:
    """What keeps apart places that are neighbors only because the image was rolled.

    Args:
        side: Side of the feature map, a multiple of ``window``.
        window: Side of a window.
        shift: By how many places the map was rolled, both down and right.

    Returns:
        float32 of shape (windows, window^2, window^2): 0 where two places belong together, -100
        elsewhere.
    """
    places = torch.arange(side)
    band = (places >= side - window).long() + (places >= side - shift).long()
    regions = band[:, None] * 3 + band[None, :]
    count = side // window
    cut = regions.reshape(count, window, count, window).transpose(1, 2).reshape(count**2, -1)
    return (cut[:, None, :] != cut[:, :, None]).float() * BLOCKED


@dataclass(frozen=True)
class ConstantLike(Rule):
    """A constant of the spec, on the device and in the dtype of a tensor of the store.

    Args:
        value: The constant, on the CPU.
        like: The tensor it is computed with.
    """

    value: Tensor
    like: str

    @property
    def sources(self) -> tuple[str, ...]:
        """None: no value is read."""
        return ()

    def read(self, tensors: Tensors) -> Tensor:
        """The constant, moved."""
        return self.value.to(tensors[self.like])

    def support(self, tensors: Tensors) -> dict[str, Tensor]:
        """Nothing learns."""
        return {}

    def write_back(self, tensors: Tensors, value: Tensor) -> None:
        """Refuse: a constant is not trained."""
        raise TypeError("a constant cannot be written back")
