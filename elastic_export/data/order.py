"""Which images, in which order: shuffles, class-balanced heads and hold-outs, all by index."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from elastic_export.errors import UserError

__all__ = ["balanced_order", "batch_indices", "hold_out"]


def batch_indices(
    n: int, batch_size: int, *, seed: int | None, drop_last: bool, start: int = 0
) -> Iterator[np.ndarray]:
    """Cut ``n`` images into batches of indices.

    Args:
        n: Number of images.
        batch_size: Images per batch; the last batch holds the rest.
        seed: None for the stored order, else the shuffle that this seed gives.
        drop_last: Whether a last batch that is not full is left out.
        start: Number of batches left out at the beginning.
    """
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    end = n - n % batch_size if drop_last else n
    for first in range(start * batch_size, end, batch_size):
        yield order[first : min(first + batch_size, end)]


def balanced_order(labels: np.ndarray) -> np.ndarray:
    """Order images so that every prefix holds all classes as evenly as they allow.

    The first image of each class, then the second of each, and so on; within a class the stored
    order.

    Example:
        ``balanced_order(np.array([0, 0, 0, 1, 2]))`` is ``[0, 3, 4, 1, 2]``.
    """
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    first_of_class = np.concatenate(([0], np.cumsum(counts)[:-1]))
    turn = np.arange(len(labels)) - np.repeat(first_of_class, counts)
    return by_class[np.lexsort((labels[by_class], turn))]


def hold_out(
    labels: np.ndarray, per_class: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Part images in two, taking a number of random images of each class.

    Args:
        labels: Class of each image, int (n,).
        per_class: How many to take of each class, int (classes,).
        rng: Decides which.

    Returns:
        Ascending indices of the images that stay, and of those taken.

    Raises:
        UserError: A class would be left without an image.
    """
    taken = []
    for label, wanted in enumerate(per_class):
        members = np.flatnonzero(labels == label)
        if wanted >= len(members):
            raise UserError(
                f"Class {label} has {len(members)} training images, so {wanted} of them cannot "
                "be held out with one left to train on.",
                f"Set data.search_split.per_class to at most {max(len(members) - 1, 0)}, "
                "or add images to that class.",
            )
        taken.append(rng.permutation(members)[:wanted])
    held = np.sort(np.concatenate(taken))
    return np.setdiff1d(np.arange(len(labels)), held), held
