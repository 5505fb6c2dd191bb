"""Calibration that cannot be: each cause is told, with the layer, batch or file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from elastic_export.config.recipe import DataConfig
from elastic_export.config.transform import Transform
from elastic_export.data import load_dataset
from elastic_export.data.imagefolder import FolderSplit
from elastic_export.data.splits import ArraySplit
from elastic_export.errors import UserError
from elastic_export.quantize.calibrate import calibrate
from tests.unit.quantize.recipes import METHODS, tiny_vit
from tests.unit.quantize.recipes import recipe as _recipe


class _Breaks(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.second = nn.Conv2d(16, 16, 1)
        self.third = nn.Conv2d(16, 16, 1)
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)) * self.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_broken_activations_name_the_first_layer(make_split, method, value, kind) -> None:
    with pytest.raises(UserError, match=f'{kind}.* the input of layer "third", in batch 1 of 3'):
        calibrate(_Breaks(value).eval(), make_split(), _recipe(method))


def test_broken_weights_name_the_layer(net, make_split) -> None:
    net.hidden.weight.data[3, 3] = float("nan")
    with pytest.raises(UserError, match='NaN in the weight of layer "hidden"'):
        calibrate(net, make_split(), _recipe())


def test_broken_images(net, make_split) -> None:
    split = make_split()
    split.x[5, 0, 0, 0] = float("inf")
    with pytest.raises(UserError, match="in the calibration images, in batch 1 of 3"):
        calibrate(net, split, _recipe())


def test_a_skip_pattern_that_matches_nothing(net, make_split) -> None:
    with pytest.raises(UserError, match=r'"hiden", which matches no module.*"hidden"'):
        calibrate(net, make_split(), _recipe(skip=("hiden",)))


def test_too_few_images(net, make_split) -> None:
    with pytest.raises(UserError, match="25 images were asked"):
        calibrate(net, make_split(24), _recipe(images=25))


class _Empty(ArraySplit):
    """A split that a filter has left without images."""

    def __len__(self) -> int:
        return 0


def test_an_empty_set(net, make_split) -> None:
    full = make_split()
    with pytest.raises(UserError, match="The calibration set holds no images"):
        calibrate(net, _Empty("calibration", full.x, full.y, 10), _recipe())


def _folder(root: Path, n: int) -> Path:
    for part in ("train", "val"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            for i in range(n):
                pixels = np.full((8, 8, 3), 20 * i + 30, dtype=np.uint8)
                pixels[i % 8] = 200
                Image.fromarray(pixels).save(root / part / label / f"{i}.png")
    return root


def test_an_unreadable_image_names_its_file_and_leaves_nothing(net, tmp_path: Path) -> None:
    root = _folder(tmp_path / "images", 4)
    transform = {"size": 8, "resize": None}
    config = DataConfig(
        dataset="imagefolder", root=str(root), transform=transform, search_split={"per_class": 1}
    )
    train = load_dataset(config).train
    recipe = _recipe(images=len(train), batch_size=2)
    before = calibrate(net, train, recipe)
    victim = root / "train" / train.files[-1]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    work = tmp_path / "work"
    with pytest.raises(UserError, match=f"The image {victim} cannot be read"):
        calibrate(net, load_dataset(config).train, recipe, work=work)
    victim.unlink()
    with pytest.raises(UserError, match=f"The image {victim} cannot be read: No such file"):
        calibrate(net, FolderSplit(**_parts(train)), recipe, work=work)
    assert not work.exists()
    victim.write_bytes(whole)
    other = config.model_copy(update={"transform": Transform(**transform, mean=(0.5, 0.5, 0.5))})
    after = calibrate(net, load_dataset(other).train, recipe)
    assert before == calibrate(net, load_dataset(config).train, recipe)
    assert before.data_digest != after.data_digest


def _parts(split: FolderSplit) -> dict[str, object]:
    names = ("name", "root", "files", "labels", "num_classes", "transform")
    return {name: getattr(split, name) for name in names}


def test_another_channel_count_names_both(net, make_split) -> None:
    with pytest.raises(UserError, match=r"have 1 channel\(s\), but the module takes 3"):
        calibrate(net, make_split(channels=1), _recipe())


def test_another_size_says_what_the_module_says() -> None:
    net = tiny_vit()
    x = torch.randn(24, 1, 10, 10)
    split = ArraySplit("calibration", x, torch.zeros(24), 10)
    with pytest.raises(UserError, match=r"shape \(1, 10, 10\)"):
        calibrate(net, split, _recipe())


def test_nothing_to_quantize(make_split) -> None:
    with pytest.raises(UserError, match="neither a Linear nor a Conv2d"):
        calibrate(nn.Sequential(nn.BatchNorm2d(3)), make_split(), _recipe())
