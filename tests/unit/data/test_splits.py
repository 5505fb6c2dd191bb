from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elastic_export.data import ArraySplit
from elastic_export.data.order import balanced_order, batch_indices
from elastic_export.errors import UserError


def numbered(labels: list[int], classes: int = 5) -> ArraySplit:
    x = torch.arange(len(labels), dtype=torch.float32).reshape(-1, 1, 1, 1)
    return ArraySplit("train", x, torch.tensor(labels), classes)


@given(
    n=st.integers(1, 50),
    size=st.integers(1, 20),
    seed=st.none() | st.integers(0, 9),
    drop_last=st.booleans(),
    start=st.integers(0, 5),
)
def test_batches_cover_the_order(
    n: int, size: int, seed: int | None, drop_last: bool, start: int
) -> None:
    whole = list(batch_indices(n, size, seed=seed, drop_last=False))
    assert sorted(np.concatenate(whole)) == list(range(n))
    assert [len(b) for b in whole[:-1]] == [size] * (n // size - (n % size == 0))
    expected = [b for b in whole if not drop_last or len(b) == size][start:]
    got = list(batch_indices(n, size, seed=seed, drop_last=drop_last, start=start))
    assert [b.tolist() for b in got] == [b.tolist() for b in expected]


def test_shuffles_differ_by_seed_and_stored_order_is_stored() -> None:
    split = numbered([0] * 40)

    def order(seed: int | None) -> list[float]:
        return [v for x, _ in split.batches(7, seed=seed) for v in x.flatten().tolist()]

    assert order(None) == list(range(40))
    assert order(1) == order(1)
    assert order(1) != order(2)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_every_prefix_is_as_balanced_as_the_classes_allow(labels: list[int]) -> None:
    y = np.array(labels)
    order = balanced_order(y)
    assert sorted(order) == list(range(len(labels)))
    have = np.bincount(y, minlength=5)
    for n in range(1, len(labels) + 1):
        taken = np.bincount(y[order[:n]], minlength=5)
        # Only a class that is used up may lie more than one image behind the others.
        assert ((taken == have) | (taken >= taken.max() - 1)).all()


def test_head_takes_labels_along_and_can_be_named() -> None:
    split = numbered([0, 0, 0, 1, 2])
    head = split.head(4, name="calibration")
    assert (head.name, split.head(1).name) == ("calibration", "train")
    assert head.x.flatten().tolist() == [0, 3, 4, 1]
    assert head.y.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("asked", [0, 6])
def test_head_refuses_what_is_not_there(asked: int) -> None:
    with pytest.raises(UserError, match="holds 5"):
        numbered([0, 0, 0, 1, 2]).head(asked)


def test_digest_sees_pixels_labels_and_order() -> None:
    base = numbered([0, 1, 2])
    digests = {
        base.digest,
        numbered([0, 2, 1]).digest,
        ArraySplit("train", base.x + 1, base.y, 5).digest,
        ArraySplit("train", base.x.flip(0), base.y, 5).digest,
    }
    assert len(digests) == 4
    assert ArraySplit("test", base.x.clone(), base.y.numpy(), 5).digest == base.digest


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(0, 1, 2, 2), torch.zeros(0)),
        (torch.zeros(3, 1, 2, 2), torch.zeros(2)),
        (torch.zeros(3, 2, 2), torch.zeros(3)),
        (torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 5])),
        (torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, -1])),
    ],
)
def test_impossible_arrays_are_refused(x: torch.Tensor, y: torch.Tensor) -> None:
    with pytest.raises(UserError):
        ArraySplit("train", x, y, 5)
