"""The learning rate as a function of the step."""

from __future__ import annotations

import math

__all__ = ["learning_rate"]


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Rise linearly to ``peak``, then fall along half a cosine towards zero.

    Args:
        step: From 0 to ``steps - 1``.
        steps: All steps, warm-up included.
        warmup: Steps of the rise; no more than ``steps``.
        peak: The largest rate.

    Example:
        With ``steps=10, warmup=2, peak=1.0`` the rates are 0.5, 1.0, 1.0, 0.96, 0.85, ... 0.04.
    """
    warmup = min(warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
