"""Random changes of a training batch, vectorised over the batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["augment"]

_NOISE = 0.4


def augment(
    x: Tensor, kind: Literal["none", "shift", "noise", "crop-flip"], generator: torch.Generator
) -> Tensor:
    """Change each image of a batch at random.

    ``shift`` moves an image by up to an eighth of its side in each direction and repeats its
    border, which suits drawings that lie anywhere in the picture. ``noise`` adds Gaussian noise
    of 0.4 standard deviations of the (normalised) pixels, which suits small drawings that fill
    the picture, such as the digits: there it lifts a ViT's top-1 by about half a point, where
    ``shift`` costs tens of points in a training of 600 steps. ``crop-flip`` takes a crop as large
    as the image from the image mirrored at its borders by an eighth of its side, and flips every
    second one left to right, which suits photographs.

    Args:
        x: Transformed images (B, C, H, W).
        kind: What to do.
        generator: Where the randomness comes from; the same state gives the same change on every
            device.

    Returns:
        A new tensor like ``x``, on its device (``x`` itself for ``none``).
    """
    if kind == "none":
        return x
    if kind == "noise":
        noise = torch.randn(x.shape, generator=generator, device=generator.device)
        return x + _NOISE * noise.to(x.device)
    batch, _, height, width = x.shape
    rows = _moved(batch, height, generator)
    columns = _moved(batch, width, generator)
    if kind == "shift":
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    else:
        rows, columns = _mirrored(rows, height), _mirrored(columns, width)
        flip = torch.rand((batch, 1), generator=generator, device=generator.device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    rows, columns = rows.to(x.device), columns.to(x.device)
    image = torch.arange(batch, device=x.device)[:, None, None]
    return x[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _moved(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Give each image its source positions along one side: (batch, length), may lie outside."""
    reach = max(1, length // 8)
    device = generator.device
    offset = torch.randint(-reach, reach + 1, (batch, 1), generator=generator, device=device)
    return torch.arange(length, device=device) + offset


def _mirrored(position: Tensor, length: int) -> Tensor:
    return (length - 1) - ((length - 1) - position.abs()).abs()
