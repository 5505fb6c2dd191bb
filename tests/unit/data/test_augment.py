from __future__ import annotations

from typing import Literal

import pytest
import torch

from elastic_export.data import augment

Kind = Literal["shift", "noise", "crop-flip"]
KINDS: tuple[Kind, ...] = ("shift", "noise", "crop-flip")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 64, side: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=seeded(9))


def test_none_changes_nothing() -> None:
    x = images()
    assert augment(x, "none", seeded()) is x


@pytest.mark.parametrize("kind", KINDS)
def test_same_generator_state_same_result(kind: Kind) -> None:
    x = images()
    again = augment(x, kind, seeded())
    assert torch.equal(augment(x, kind, seeded()), again)
    assert not torch.equal(augment(x, kind, seeded(1)), again)
    assert again.shape == x.shape
    assert again.is_contiguous()
    assert torch.equal(x, images()), "the input must stay as it was"


@pytest.mark.parametrize(("side", "reach"), [(8, 1), (32, 4)])
def test_shift_is_one_translation_of_all_channels(side: int, reach: int) -> None:
    x = images(200, side)
    moved = augment(x, "shift", seeded())
    inner = slice(reach, side - reach)
    met = set()
    for before, after in zip(x, moved, strict=True):
        fits = [
            (dy, dx)
            for dy in range(-reach, reach + 1)
            for dx in range(-reach, reach + 1)
            if torch.equal(
                after[:, inner, inner],
                before[:, reach + dy : side - reach + dy, reach + dx : side - reach + dx],
            )
        ]
        assert len(fits) == 1
        met.update(fits)
    assert len(met) > (2 * reach + 1) ** 2 // 2


def test_shift_repeats_the_border() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    rows = {tuple(augment(ramp, "shift", seeded(s))[0, 0, 0].tolist()) for s in range(20)}
    up, down = (1, 2, 3, 4, 5, 6, 7, 7), (0, 0, 1, 2, 3, 4, 5, 6)
    assert rows == {tuple(range(8)), up, down}


def test_crop_flip_flips_half_and_mirrors_the_border() -> None:
    ramp = torch.arange(8.0).expand(400, 1, 8, 8)
    rows = [tuple(image[0, 0].tolist()) for image in augment(ramp, "crop-flip", seeded())]
    straight = {tuple(range(8)), (1, 2, 3, 4, 5, 6, 7, 6), (1, 0, 1, 2, 3, 4, 5, 6)}
    flipped = {row[::-1] for row in straight}
    assert set(rows) == straight | flipped
    assert 150 < sum(row in flipped for row in rows) < 250


def test_noise_has_its_stated_deviation_and_no_mean() -> None:
    x = images(400)
    noise = augment(x, "noise", seeded()) - x
    assert float(noise.std()) == pytest.approx(0.4, rel=0.02)
    assert abs(float(noise.mean())) < 0.01
