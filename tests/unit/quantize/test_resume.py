"""An interrupted calibration goes on where it was, with the bits of an uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.data.splits import ArraySplit
from elastic_export.errors import UserError
from elastic_export.quantize import resume
from elastic_export.quantize.calibrate import calibrate

METHODS = ["max", "percentile", "entropy", "mse"]
FILE = "calibration.state"


class Counting(ArraySplit):
    """Counts the batches it gave since the last look."""

    given = 0

    def head(self, n: int, *, name: str | None = None) -> Counting:
        return self

    def batches(self, batch_size: int, **options: object) -> Iterator:
        for batch in super().batches(batch_size, **options):
            self.given += 1
            yield batch


class Stops:
    """Interrupts the work after so many steps: the first step is the import of ModelOpt."""

    def __init__(self, after: int) -> None:
        self.left = after + 1
        self.notes: list[str] = []

    def start(self, label: str, total: int) -> None:
        pass

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.notes.append(note)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def finish(self) -> None:
        pass


@pytest.fixture(autouse=True)
def save_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=3, num_classes=10, embed_dim=32, depth=1, num_heads=2
    ).eval()


@pytest.fixture
def images() -> Counting:
    # Each batch is larger than the one before, so that histograms have to grow.
    x = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x *= torch.linspace(0.1, 5.0, 20)[:, None, None, None]
    return Counting("calibration", x, torch.arange(20) % 10, 10)


def _recipe(method: str = "max", **more: object) -> CalibrationRecipe:
    percentile = 99.0 if method == "percentile" else None
    known = {"name": "t", "method": method, "percentile": percentile, "images": 20}
    return CalibrationRecipe(**known | {"batch_size": 5} | more)


def _interrupted(net: nn.Module, images: Counting, recipe, work: Path, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, images, recipe, work=work, progress=Stops(after))


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_pass_has_the_same_bits(vit, images, tmp_path: Path, method: str) -> None:
    whole = calibrate(vit, images, _recipe(method))
    work = tmp_path / "ranges"
    _interrupted(vit, images, _recipe(method), work, 1)
    _interrupted(vit, images, _recipe(method), work, 2)
    assert (work / FILE).exists()
    images.given = 0
    told = Stops(100)
    resumed = calibrate(vit, images, _recipe(method), work=work, progress=told)
    assert images.given == 4 - 2
    assert "went on after batch 2" in told.notes
    assert resumed == whole
    assert resumed.digest == whole.digest
    assert not work.exists()


@pytest.mark.parametrize("change", ["weights", "images", "method", "batch size"])
def test_the_state_of_another_pass_is_not_used(vit, images, tmp_path: Path, change: str) -> None:
    _interrupted(vit, images, _recipe(), tmp_path, 2)
    recipe = _recipe()
    if change == "weights":
        vit.head.weight.data[0, 0] += 1
    elif change == "images":
        images = Counting("calibration", images.x + 1, images.y, 10)
    elif change == "method":
        recipe = _recipe("mse")
    else:
        recipe = _recipe(batch_size=4)
    images.given = 0
    told = Stops(100)
    found = calibrate(vit, images, recipe, work=tmp_path, progress=told)
    assert images.given == (5 if change == "batch size" else 4)
    assert any("belongs to another" in note for note in told.notes)
    assert found == calibrate(vit, images, recipe)


def test_names_notes_and_skips_do_not_make_another_pass(vit, images, tmp_path: Path) -> None:
    _interrupted(vit, images, _recipe(), tmp_path, 2)
    images.given = 0
    record = calibrate(vit, images, _recipe(name="other", skip=("blocks",)), work=tmp_path)
    assert images.given == 2
    assert record.quantized_modules() == []


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_state_is_redone(vit, images, tmp_path: Path, content: bytes | None) -> None:
    _interrupted(vit, images, _recipe(), tmp_path, 2)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    images.given = 0
    told = Stops(100)
    found = calibrate(vit, images, _recipe(), work=tmp_path, progress=told)
    assert images.given == 4
    assert any("is damaged" in note for note in told.notes)
    assert found == calibrate(vit, images, _recipe())
    assert not path.exists()


def test_bad_input_leaves_nothing(vit, images, tmp_path: Path) -> None:
    images.x[17, 0, 0, 0] = float("nan")
    work = tmp_path / "ranges"
    with pytest.raises(UserError, match="NaN in the calibration images, in batch 4 of 4"):
        calibrate(vit, images, _recipe(), work=work)
    assert not work.exists()


def test_a_folder_that_cannot_be_written(vit, images, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        calibrate(vit, images, _recipe(), work=tmp_path / "file" / "ranges")


def test_other_files_in_the_folder_stay(vit, images, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    calibrate(vit, images, _recipe(), work=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_short_pass_writes_nothing(vit, images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 10.0)
    work = tmp_path / "ranges"
    _interrupted(vit, images, _recipe(), work, 2)
    assert not work.exists()
