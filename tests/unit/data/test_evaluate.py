from __future__ import annotations

import pytest
import torch

from elastic_export.data import ArraySplit, logits, top1
from elastic_export.errors import CheckFailed


def answers(right: int, wrong: int) -> ArraySplit:
    """Images of one pixel that name a class; the label is that class for the first ``right``."""
    x = torch.arange(right + wrong) % 3
    y = torch.where(torch.arange(right + wrong) < right, x, (x + 1) % 3)
    return ArraySplit("test", x.reshape(-1, 1, 1, 1).float(), y, 3)


def named_class(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(x.flatten().long(), 3).float()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_top1_counts_in_percent_whatever_the_batch(batch_size: int) -> None:
    assert top1(named_class, answers(7, 3), batch_size) == pytest.approx(70.0)


def test_logits_come_in_stored_order_without_gradient() -> None:
    weight = torch.ones(3, requires_grad=True)
    split = answers(5, 2)
    out, labels = logits(lambda x: named_class(x) * weight, split, 2)
    assert out.shape == (7, 3)
    assert not out.requires_grad
    assert torch.equal(out, named_class(split.x))
    assert torch.equal(labels, split.y)


def test_logits_that_are_not_finite_are_not_an_accuracy() -> None:
    with pytest.raises(CheckFailed, match="2 of 7"):
        top1(lambda x: named_class(x) / (x.flatten()[:, None] != 1), answers(7, 0))
