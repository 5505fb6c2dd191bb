from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as read_digits

from elastic_export.config.recipe import DataConfig, SearchSplit
from elastic_export.config.transform import Transform
from elastic_export.data import ArraySplit, Dataset, load_dataset
from elastic_export.errors import UserError

DIGITS = DataConfig(dataset="digits")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DIGITS)


def rows(split: object) -> set[bytes]:
    assert isinstance(split, ArraySplit)
    return {image.numpy().tobytes() for image in split.x}


def test_parts_share_no_image_and_hold_them_all(digits: Dataset) -> None:
    assert (len(digits.train), len(digits.search), len(digits.test)) == (1238, 200, 359)
    parts = [rows(digits.train), rows(digits.search), rows(digits.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_every_class_gives_its_share(digits: Dataset) -> None:
    images = np.bincount(read_digits().target)
    assert torch.bincount(digits.search.y).tolist() == [20] * 10  # type: ignore[attr-defined]
    tested = torch.bincount(digits.test.y).numpy()  # type: ignore[attr-defined]
    assert np.abs(tested - 0.2 * images).max() <= 0.5


def test_test_split_is_the_same_for_every_seed_and_search_is_not(digits: Dataset) -> None:
    again, other = load_dataset(DIGITS), load_dataset(DIGITS, seed=1)
    wider = load_dataset(DataConfig(dataset="digits", search_split=SearchSplit(per_class=30)))
    assert again.train.digest == digits.train.digest
    assert again.search.digest == digits.search.digest
    assert {again.test.digest, other.test.digest, wider.test.digest} == {digits.test.digest}
    assert other.search.digest != digits.search.digest
    assert len(wider.search) == 300


def test_images_are_pixels_over_sixteen_normalised(digits: Dataset) -> None:
    x, y = next(digits.test.batches(359))
    assert x.dtype == torch.float32
    assert x.shape == (359, 1, 8, 8)
    assert y.dtype == torch.int64
    pixels = (x * digits.transform.std[0] + digits.transform.mean[0]) * 16
    assert torch.allclose(pixels, pixels.round(), atol=1e-4)
    assert (float(pixels.min()), float(pixels.max())) == pytest.approx((0, 16), abs=1e-4)


def test_seen_images_have_zero_mean_and_unit_deviation(digits: Dataset) -> None:
    seen = torch.cat([digits.train.x, digits.search.x])  # type: ignore[attr-defined]
    assert abs(float(seen.mean())) < 1e-3
    assert abs(float(seen.std()) - 1) < 1e-3


def test_own_transform_resizes_and_spreads_over_channels() -> None:
    transform = Transform(size=16, resize=16, channels=3, mean=(0.5,) * 3, std=(0.5, 0.5, 0.25))
    data = load_dataset(DataConfig(dataset="digits", transform=transform))
    x, _ = next(data.test.batches(4))
    assert x.shape == (4, 3, 16, 16)
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.allclose(2 * x[:, 0], x[:, 2])


def test_hold_out_that_leaves_nothing_is_refused() -> None:
    config = DataConfig(dataset="digits", search_split=SearchSplit(per_class=139))
    with pytest.raises(UserError, match="held out") as caught:
        load_dataset(config)
    assert "at most 138" in caught.value.fix
