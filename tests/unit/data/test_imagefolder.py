from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elastic_export.config.recipe import DataConfig, SearchSplit
from elastic_export.config.transform import Transform
from elastic_export.data import apply_transform, load_dataset
from elastic_export.errors import UserError

SMALL = Transform(size=8, resize=10)
CLASSES = ("ant", "bee", "cat")


def fill(root: Path, train: int = 5, val: int = 2, classes: tuple[str, ...] = CLASSES) -> Path:
    rng = np.random.default_rng(0)
    modes = ("RGB", "L", "RGBA", "CMYK")
    for part, count in (("train", train), ("val", val)):
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                mode = modes[i % 4]
                pixels = rng.integers(0, 256, (12 + i, 15, 4), dtype=np.uint8)
                image = Image.fromarray(pixels).convert(mode)
                image.save(folder / f"{i}.{'png' if mode != 'CMYK' else 'JPEG'}")
            (folder / "notes.txt").write_text("not an image")
    return root


def config(root: Path, per_class: int = 1, transform: Transform = SMALL) -> DataConfig:
    return DataConfig(
        dataset="imagefolder",
        root=str(root),
        transform=transform,
        search_split=SearchSplit(per_class=per_class),
    )


def test_parts_classes_and_images(tmp_path: Path) -> None:
    data = load_dataset(config(fill(tmp_path), per_class=2))
    assert data.num_classes == 3
    assert (len(data.train), len(data.search), len(data.test)) == (9, 6, 6)
    assert not set(data.train.files) & set(data.search.files)  # type: ignore[attr-defined]
    x, y = next(data.test.batches(6))
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    expected = apply_transform(Image.open(tmp_path / "val/bee/1.png"), SMALL)
    assert torch.equal(x[3], torch.from_numpy(expected))


def test_batches_repeat_and_follow_the_shuffle(tmp_path: Path) -> None:
    split = load_dataset(config(fill(tmp_path))).train
    stored = torch.cat([x for x, _ in split.batches(5)])
    shuffled = torch.cat([x for x, _ in split.batches(5, seed=3)])
    order = np.random.default_rng(3).permutation(len(split))
    assert torch.equal(shuffled, stored[torch.from_numpy(order)])
    late = [y.tolist() for _, y in split.batches(5, seed=3, start=1, drop_last=True)]
    assert late == [y.tolist() for _, y in split.batches(5, seed=3)][1:2]


def test_head_is_balanced_and_digest_is_its_own(tmp_path: Path) -> None:
    split = load_dataset(config(fill(tmp_path))).train
    head = split.head(6, name="calibration")
    assert next(head.batches(6))[1].tolist() == [0, 1, 2, 0, 1, 2]
    assert head.digest == split.head(6).digest != split.digest


def test_digest_follows_content_paths_and_transform_not_place_or_time(tmp_path: Path) -> None:
    first = fill(tmp_path / "a")
    base = load_dataset(config(first)).test.digest
    shutil.copytree(first, tmp_path / "b")
    assert load_dataset(config(tmp_path / "b")).test.digest == base
    other = load_dataset(config(first, transform=Transform(size=8, resize=11))).test.digest
    changed = bytearray((tmp_path / "b/val/cat/0.png").read_bytes())
    changed[-1] ^= 1
    (tmp_path / "b/val/cat/0.png").write_bytes(changed)
    edited = load_dataset(config(tmp_path / "b")).test.digest
    (first / "val/cat/0.png").rename(first / "val/cat/9.png")
    renamed = load_dataset(config(first)).test.digest
    assert len({base, other, edited, renamed}) == 4


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as caught:
        load_dataset(config(tmp_path / "nowhere"))
    assert "data.root" in caught.value.fix


def test_no_class_folders(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        load_dataset(config(tmp_path))


def test_different_classes(tmp_path: Path) -> None:
    shutil.rmtree(fill(tmp_path) / "val" / "bee")
    with pytest.raises(UserError, match="'bee' in train"):
        load_dataset(config(tmp_path))


def test_class_without_images(tmp_path: Path) -> None:
    fill(tmp_path)
    for file in (tmp_path / "train" / "ant").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="ant holds no images"):
        load_dataset(config(tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_unreadable_image_is_named(tmp_path: Path, damage: str) -> None:
    victim = fill(tmp_path) / "val" / "bee" / "1.png"
    whole = victim.read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "text": b"hello", "empty": b""}
    victim.write_bytes(content[damage])
    split = load_dataset(config(tmp_path)).test
    with pytest.raises(UserError, match=r"bee/1\.png cannot be read"):
        list(split.batches(2))


def test_image_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    split = load_dataset(config(fill(tmp_path), transform=Transform(size=8, resize=None))).test
    with pytest.raises(UserError, match=r"15 x 12 pixels .*ant/0.png"):
        list(split.batches(2))
