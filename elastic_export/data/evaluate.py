"""Running a network over a split: logits and top-1 accuracy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from elastic_export.data.splits import Split
from elastic_export.errors import CheckFailed

__all__ = ["logits", "top1"]


def logits(
    predict: Callable[[Tensor], Tensor], split: Split, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Run a network over a split in its stored order, without gradients.

    Args:
        predict: From images (B, C, H, W) to logits (B, classes); moves images to its own device.
        split: The images.
        batch_size: Images per call.

    Returns:
        Logits float32 (N, classes) and labels int64 (N,), on the CPU.
    """
    outputs, labels = [], []
    with torch.no_grad():
        for x, y in split.batches(batch_size):
            outputs.append(predict(x).float().cpu())
            labels.append(y)
    return torch.cat(outputs), torch.cat(labels)


def top1(predict: Callable[[Tensor], Tensor], split: Split, batch_size: int = 256) -> float:
    """Measure how often the largest logit is the label's, in percent.

    Args:
        predict: From images (B, C, H, W) to logits (B, classes).
        split: The images.
        batch_size: Images per call.

    Raises:
        CheckFailed: A logit is not a finite number, so there is no largest one.
    """
    outputs, labels = logits(predict, split, batch_size)
    broken = int((~outputs.isfinite().all(dim=1)).sum())
    if broken:
        raise CheckFailed(
            f"The network gives logits that are not finite for {broken} of {len(split)} images of "
            f"the {split.name} split.",
            "Look for the first layer with such values; a lower learning rate or a wider "
            "calibration range often mends it.",
        )
    return 100.0 * float((outputs.argmax(dim=1) == labels).double().mean())
