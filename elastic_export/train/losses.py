"""The losses: labels, soft cross entropy to a teacher, and their mixture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["distillation_loss", "label_loss", "soft_cross_entropy"]


def label_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross entropy with label smoothing; logits (B, classes), labels (B,)."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean cross entropy of ``softmax(teacher)`` with the student; both (B, classes).

    No gradient goes to the teacher. It differs from the KL divergence by the teacher's entropy,
    which is constant, so the gradients are equal.
    """
    return F.cross_entropy(logits.float(), teacher.detach().float().softmax(dim=1))


def distillation_loss(logits: Tensor, labels: Tensor, teacher: Tensor, smoothing: float) -> Tensor:
    """Half label loss, half KL divergence from the teacher at temperature 1 (Hinton et al. 2015).

    Args:
        logits: The student's (B, classes).
        labels: Classes (B,).
        teacher: The teacher's logits (B, classes).
        smoothing: Label smoothing of the first half.
    """
    divergence = F.kl_div(
        logits.float().log_softmax(dim=1),
        teacher.detach().float().log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return 0.5 * label_loss(logits, labels, smoothing) + 0.5 * divergence
