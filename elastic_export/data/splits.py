"""What a split of a data set can do, and a split whose images lie in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from elastic_export.config.transform import Transform
from elastic_export.data.order import balanced_order, batch_indices
from elastic_export.errors import UserError

__all__ = ["ArraySplit", "Dataset", "Split", "check_head"]


class Split(Protocol):
    """Labelled images in a stored order, ready for the network."""

    @property
    def name(self) -> str:
        """Say what it is for: ``train``, ``search``, ``test`` or ``calibration``."""

    @property
    def num_classes(self) -> int:
        """Count the classes of the whole data set, present in this split or not."""

    @property
    def digest(self) -> str:
        """Identify the images, labels and transform: a SHA-256 in hex, the same everywhere."""

    def __len__(self) -> int:
        """Count the images."""

    def batches(
        self, batch_size: int, *, seed: int | None = None, drop_last: bool = False, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) float32, transformed, and labels (B,) int64.

        Args:
            batch_size: Images per batch.
            seed: None for the stored order, else the shuffle that this seed gives.
            drop_last: Whether a last batch that is not full is left out.
            start: Batches to leave out at the beginning, which costs nothing.
        """

    def head(self, n: int, *, name: str | None = None) -> Split:
        """Take the first ``n`` images of a fixed, class-balanced order.

        Raises:
            UserError: The split holds fewer than ``n`` images.
        """


@dataclass(frozen=True)
class Dataset:
    """A data set in three parts that share no image: ``train`` excludes ``search``."""

    name: str
    num_classes: int
    transform: Transform
    train: Split
    search: Split
    test: Split


def check_head(name: str, have: int, asked: int) -> None:
    """Refuse a head of more images than there are, or of none.

    Raises:
        UserError: ``asked`` is not between 1 and ``have``.
    """
    if not 0 < asked <= have:
        raise UserError(
            f"{asked} images were asked of the {name} split, which holds {have}.",
            f"Ask for 1 to {have} images, or add images to the data set.",
        )


class ArraySplit:
    """A split of transformed images in memory.

    Args:
        name: What the split is for.
        x: Transformed images, float32 (N, C, H, W).
        y: Labels, int64 (N,), from 0 to ``num_classes - 1``.
        num_classes: Classes of the whole data set.

    Raises:
        UserError: There is no image, the two lengths differ, or a label is out of range.
    """

    def __init__(
        self, name: str, x: Tensor | np.ndarray, y: Tensor | np.ndarray, num_classes: int
    ) -> None:
        self.name = name
        self.num_classes = num_classes
        self.x = torch.as_tensor(x, dtype=torch.float32)
        self.y = torch.as_tensor(y, dtype=torch.int64)
        if self.x.ndim != 4 or self.y.shape != self.x.shape[:1] or len(self.y) == 0:
            raise UserError(
                f"The {name} split has images of shape {tuple(self.x.shape)} and labels of shape "
                f"{tuple(self.y.shape)}.",
                "Give images of shape (N, C, H, W) with N of at least 1, and N labels.",
            )
        if int(self.y.min()) < 0 or int(self.y.max()) >= num_classes:
            raise UserError(
                f"The {name} split has labels from {int(self.y.min())} to {int(self.y.max())}.",
                f"Give labels from 0 to {num_classes - 1}, for {num_classes} classes.",
            )

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def digest(self) -> str:
        """Identify the transformed images and their labels."""
        state = hashlib.sha256(f"{tuple(self.x.shape)} {self.num_classes}".encode())
        state.update(np.ascontiguousarray(self.x.cpu().numpy()).tobytes())
        state.update(np.ascontiguousarray(self.y.cpu().numpy()).tobytes())
        return state.hexdigest()

    def batches(
        self, batch_size: int, *, seed: int | None = None, drop_last: bool = False, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) and labels (B,); see :meth:`Split.batches`."""
        for index in batch_indices(
            len(self), batch_size, seed=seed, drop_last=drop_last, start=start
        ):
            rows = torch.from_numpy(index)
            yield self.x[rows], self.y[rows]

    def head(self, n: int, *, name: str | None = None) -> ArraySplit:
        """Take the first ``n`` images of the class-balanced order; see :meth:`Split.head`."""
        check_head(self.name, len(self), n)
        rows = torch.from_numpy(balanced_order(self.y.numpy())[:n])
        return ArraySplit(name or self.name, self.x[rows], self.y[rows], self.num_classes)
