"""Training batches by step number: where a run resumes, the stream goes on as if never cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from elastic_export.data import Split, augment

__all__ = ["step_rng", "step_seed", "training_batches"]

_PURPOSES = ("shuffle", "augment", "specs", "dropout")


def step_seed(seed: int, number: int, purpose: str) -> int:
    """Derive a seed for one purpose at one step (or epoch), independent of all others."""
    entropy = [seed, number, _PURPOSES.index(purpose)]
    # 63 bits: torch's generators take signed integers.
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def step_rng(seed: int, number: int, purpose: str) -> np.random.Generator:
    """Make the NumPy generator of :func:`step_seed`."""
    return np.random.default_rng(step_seed(seed, number, purpose))


def training_batches(
    split: Split,
    *,
    batch_size: int,
    start: int,
    steps: int,
    seed: int,
    augmentation: Literal["none", "shift", "noise", "crop-flip"],
    device: torch.device,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield ``(step, images, labels)`` for the steps from ``start`` to ``steps - 1``.

    Each epoch is one shuffle of the split; its last images that do not fill a batch are left out,
    so that every step weighs the same. A split smaller than ``batch_size`` is one batch.
    Before each batch torch's global generators are seeded for the step, for layers such as
    dropout; the caller puts the old state back.
    """
    batch_size = min(batch_size, len(split))
    per_epoch = len(split) // batch_size
    generator = torch.Generator()
    step = start
    while step < steps:
        epoch, done = divmod(step, per_epoch)
        shuffle = step_seed(seed, epoch, "shuffle")
        for x, y in split.batches(batch_size, seed=shuffle, drop_last=True, start=done):
            if step == steps:
                return
            torch.manual_seed(step_seed(seed, step, "dropout"))
            generator.manual_seed(step_seed(seed, step, "augment"))
            yield step, augment(x.to(device), augmentation, generator), y.to(device)
            step += 1
