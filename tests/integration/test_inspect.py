"""``inspect`` says what a file is, what is in it, and what is missing to use it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

sys.path.insert(0, str(Path(__file__).parent))

from conftest import Answer, call

Run = Callable[..., Answer]


@pytest.fixture
def run(run_here: Run) -> Run:
    """Reading a file is not worth a process of its own."""
    return run_here


def _vit(**changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=5, **changes
    )
    state: dict[str, torch.Tensor] = net.state_dict()
    state["blocks.0.mlp.fc1.weight"][:100] = 0
    return state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    content = {
        "model": _vit(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, model="x"),
        "scaler": torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1),
    }
    torch.save(content, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_what_is_missing_is_told_and_can_be_given(run: Run, checkpoint: Path) -> None:
    answer = run("inspect", checkpoint, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["kind"] == "checkpoint"
    assert "heads" in answer.json["unusable"]["what"]
    assert "--set heads=" in answer.json["unusable"]["fix"]
    answer = run("inspect", checkpoint, "--json", "--set", "heads=[3]")
    told = answer.json
    assert (told["kind"], told["family"], told["used"]) == ("plain checkpoint", "vit", "model")
    assert told["macs"][0] == told["macs"][1] > 0
    assert told["zeros"] == {"blocks.0.mlp.fc1.weight": pytest.approx(100 / 768, abs=1e-3)}
    assert {"min", "max"} <= set(told["named_specs"])


def test_settings_may_be_a_file(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("heads: [3]\n")
    given = ("--config", tmp_path / "s.yaml", "--family", "vit", "--format", "timm")
    answer = run("inspect", checkpoint, "--json", *given)
    assert answer.json["family"] == "vit"
    misspelt = run("inspect", checkpoint, "--format", "tmim")
    assert misspelt.code == 1
    assert 'Did you mean "timm"?' in misspelt.err


def test_people_get_one_screen(run: Run, checkpoint: Path) -> None:
    answer = run("inspect", checkpoint, "--set", "heads=[3]")
    assert answer.code == 0, answer.err
    assert "13.0%" in answer.out
    assert len(answer.out.splitlines()) < 60


def test_a_file_with_code_is_refused_or_left_closed(run: Run, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pth")
    told = run("inspect", tmp_path / "net.pth", "--json").json
    assert "whole network of class torch.nn.modules.linear.Linear" in told["unusable"]["what"]
    assert "state_dict" in told["unusable"]["fix"]
    text = b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00evilt\x52."
    (tmp_path / "evil.pth").write_bytes(text)
    answer = run("inspect", tmp_path / "evil.pth")
    assert answer.code == 1
    assert "could run code" in answer.err


def test_folders(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    answer = run("inspect", tmp_path)
    assert answer.code == 1
    assert "is a folder" in answer.err
    assert "net.pth" in answer.err
    (tmp_path / "empty").mkdir()
    assert "empty folder" in run("inspect", tmp_path / "empty").err
    made = tmp_path / "made"
    (made / "bundles" / "min-a10").mkdir(parents=True)
    (made / "report.json").write_text("{}")
    (made / "bundles" / "min-a10" / "manifest.json").write_text("{}")
    said = " ".join(run("inspect", made).err.split())
    assert "folder of a finished build" in said
    assert "min-a10" in said
    assert "elastic-export report" in said
    assert run("inspect", made / "bundles" / "min-a10").code == 1


def test_the_answer_is_one_document(tmp_path: Path, checkpoint: Path) -> None:
    answer = call("inspect", checkpoint, "--json", "-v", home=tmp_path)
    assert json.loads(answer.out)["kind"] == "checkpoint"
