"""Watching the loss: history, progress and divergence, without a device sync at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from elastic_export.errors import CheckFailed
from elastic_export.progress import Progress

__all__ = ["LossWatch"]

_READ_EVERY = 10


class LossWatch:
    """Collects losses on the device and reads them together every ten steps.

    Args:
        progress: Told of the steps done.
        history: Entries ``{"step", "loss", "lr"}`` are added here: the mean loss of the steps
            since the last entry, and the last step's rate.
    """

    def __init__(self, progress: Progress, history: list[dict[str, float]]) -> None:
        self.history = history
        self._progress = progress
        self._waiting: list[Tensor] = []
        self._last = (0, 0.0)

    def add(self, step: int, loss: Tensor, lr: float) -> None:
        """Take in the loss of a step (a scalar tensor).

        Raises:
            CheckFailed: See :meth:`read`.
        """
        self._waiting.append(loss.detach())
        self._last = (step, lr)
        if len(self._waiting) == _READ_EVERY:
            self.read()

    def read(self) -> None:
        """Read the losses not yet read.

        Raises:
            CheckFailed: One of them is not a finite number; the message names the step.
        """
        if not self._waiting:
            return
        losses = torch.stack(self._waiting).float().cpu()
        self._waiting = []
        step, lr = self._last
        broken = torch.nonzero(~losses.isfinite())
        if len(broken):
            at = step - len(losses) + 1 + int(broken[0])
            raise CheckFailed(
                f"The loss stopped being a finite number at step {at}, with a learning rate "
                f"of {lr:.3g}.",
                "Train with a lower lr, a longer warm-up, or clip_grad_norm set to 1.0.",
            )
        mean = float(losses.mean())
        self.history.append({"step": step, "loss": mean, "lr": lr})
        self._progress.advance(len(losses), f"loss {mean:.3f}")
