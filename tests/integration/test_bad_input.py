"""Every bad input ends in one sentence of what happened and one of what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

sys.path.insert(0, str(Path(__file__).parent))

from conftest import DIGITS, Answer, call

Run = Callable[..., Answer]
Recipe = Callable[..., Path]


@pytest.fixture
def run(run_here: Run) -> Run:
    """Nothing here gets as far as work worth a process of its own."""
    return run_here


def _refused(answer: Answer, *said: str) -> None:
    assert answer.code == 1, answer.err
    assert "Traceback" not in answer.err
    for text in said:
        assert text in " ".join(answer.err.split()), answer.err


def vit(**changes: Any) -> dict[str, Any]:
    """The small recipe's model with changed settings."""
    return {"family": "vit", "config": {**DIGITS["model"]["config"], **changes}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantise": {"precision": "int8"}}, 'Did you mean "quantize"?'),
        ({"sparsify": {"pattern": "4:2"}}, "2:4"),
        ({"descend": {"specs": ["mxa"]}}, 'Did you mean "max"?'),
        ({"descend": {"specs": [{"dpeth": 2}]}}, 'Did you mean "depth"?'),
        ({"sparsify": {"patern": "2:4"}}, 'Did you mean "sparsify.pattern"?'),
        ({"train": {"steps": -5}}, "train.steps"),
        ({"train": None}, "neither model.checkpoint nor train"),
        ({"model": {"family": "vti"}}, 'Did you mean "vit"?'),
        ({"model": {"family": "vit", "config": {"widht": [32]}}}, 'Did you mean "width"?'),
        ({"targets": ["host-cup"]}, 'Did you mean "host-cpu"?'),
        ({"targets": ["nano"]}, "Orin Nano"),
        ({"targets": ["orin-nano-8gb@jp9"]}, "jp6.2"),
        ({"data": {"dataset": "imagefolder"}}, "root"),
        ({"model": vit(image_size=16)}, "the data set gives (1, 8, 8)"),
        ({"model": vit(num_classes=7)}, "7 classes"),
    ],
)
def test_recipes(run: Run, recipe: Recipe, changes: dict[str, Any], said: str) -> None:
    _refused(run("build", recipe(**changes)), said)


def _checkpoint_recipe(recipe: Recipe, path: Path, **more: Any) -> Path:
    model = {"family": "vit", "checkpoint": str(path), **more}
    return recipe(model=model, train=None)


def test_a_missing_checkpoint(run: Run, recipe: Recipe, tmp_path: Path) -> None:
    path = _checkpoint_recipe(recipe, tmp_path / "gone.pth")
    _refused(run("build", path), "gone.pth")
    _refused(call("build", path, home=tmp_path), "gone.pth")  # The installed command says it too.


def test_a_truncated_checkpoint(run: Run, recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save(timm.create_model("test_vit").state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    _refused(run("build", _checkpoint_recipe(recipe, path)), "cut off or damaged")
    assert not list(tmp_path.glob("store/artifacts/*"))


def test_a_checkpoint_of_another_family(run: Run, recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    _refused(run("build", _checkpoint_recipe(recipe, path)), "are those of resnet", "model.family")


def test_impossible_specs(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save(timm.create_model("test_vit").state_dict(), path)
    common = ("extract", path, "--set", "heads=[2]")
    _refused(run(*common, "--spec", "{depth: 7}"), "depth cannot be 7", "Choose one of 6")
    _refused(run(*common, "--spec", "{dept: 6}"), 'Did you mean "depth"?')
    _refused(run(*common, "--spec", "tiny"), 'no spec named "tiny"')
    _refused(run("extract", path), "number of heads is not stored", "model.config.heads")


def test_a_target_that_cannot_do_what_is_asked(run: Run, recipe: Recipe, tmp_path: Path) -> None:
    import yaml

    from elastic_export.resources import find

    profile = yaml.safe_load(find("targets", "a10").read_text())
    profile |= {"name": "old-gpu", "sparse_2_4": False}
    path = tmp_path / "old-gpu.yaml"
    path.write_text(yaml.safe_dump(profile))
    _refused(run("build", recipe(targets=[str(path)])), "no sparse tensor cores", "sparsify=null")
    profile["flavours"] = {"fp32": "plain"}
    path.write_text(yaml.safe_dump(profile))
    _refused(run("build", recipe(targets=[str(path)])), "cannot run INT8")


def test_files_that_are_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not a model")
    _refused(run("inspect", tmp_path / "a.onnx"), "not a complete ONNX file")
    (tmp_path / "b.pth").write_bytes(b"")
    _refused(run("inspect", tmp_path / "b.pth"), "is empty")
    _refused(run("inspect", tmp_path / "gone"), "gone")
    _refused(run("bench", tmp_path), "not a bundle")
    _refused(run("report", tmp_path / "no.json"), "no.json")
