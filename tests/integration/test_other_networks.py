"""The same flow on a ResNet, and on an imported checkpoint with photographs from folders."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from conftest import Answer

pytestmark = pytest.mark.slow

STAGE = {"block": "basic", "depth": [1], "expand": [0.5, 1.0]}
RESNET = {
    "family": "resnet",
    "config": {
        "image_size": 32,
        "in_chans": 1,
        "num_classes": 10,
        "stem": [16, 32],
        "stages": [
            {**STAGE, "width": [16, 32]},
            {**STAGE, "width": [32], "depth": [1, 2]},
        ],
    },
}
TRANSFORM = {
    "size": 32,
    "resize": 32,
    "interpolation": "bilinear",
    "channels": 1,
    "mean": [0.3],
    "std": [0.37],
}


def test_a_resnet_goes_the_whole_way(
    run: Callable[..., Answer], recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe(
        model=RESNET,
        data={"transform": TRANSFORM},
        train={"steps": 60},
        descend={"specs": ["min", "max"], "search": None},
        targets=["host-cpu", "a10"],
    )
    answer = run("build", path, "--out", tmp_path / "out", "--json")
    assert answer.code == 0, answer.err
    result = answer.json["result"]
    assert [one["name"] for one in result["descendants"]] == ["min", "max"]
    for one in result["descendants"]:
        host = next(b for b in one["bundles"] if b["target"].startswith("host"))
        fused = host["checks"]["int8"]["fused_ops"]
        # The stem reads one channel, and the smallest network has layers narrower than 16.
        assert fused.get("QLinearConv", 0) >= {"min": 3, "max": 7}[one["name"]], fused
        assert one["accuracy"]["fp32"]["top1"] > {"min": 15, "max": 40}[one["name"]]
        assert abs(host["accuracy"]["int8"]["top1"] - one["accuracy"]["2:4"]["top1"]) < 5


def _photographs(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 6)):
        for label, name in enumerate(("dark", "middle", "bright")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.normal(40 + 80 * label, 12, (72, 90, 3)).clip(0, 255)
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i}.png")


def test_an_imported_vit_on_photographs(
    run: Callable[..., Answer], recipe: Callable[..., Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=3, img_size=64)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "vit.pth")
    _photographs(tmp_path / "photos")
    path = recipe(
        model={
            "family": "vit",
            "checkpoint": str(tmp_path / "vit.pth"),
            "config": {"heads": [2]},
        },
        data={
            "dataset": "imagefolder",
            "root": str(tmp_path / "photos"),
            "transform": {"size": 64, "resize": 64},
            "search_split": {"from": "train", "per_class": 8},
        },
        train=None,
        descend={"specs": ["max"], "search": None},
        finetune={"steps": 30, "batch_size": 16, "distill": False},
        quantize={"calibration": str(_calibration(tmp_path))},
        targets=["host-cpu"],
    )
    answer = run("build", path, "--out", tmp_path / "out", "--json")
    assert answer.code == 0, answer.err
    (one,) = answer.json["result"]["descendants"]
    assert one["accuracy"]["fp32"]["top1"] >= 90
    assert one["bundles"][0]["accuracy"]["int8"]["top1"] >= 85


def _calibration(folder: Path) -> Path:
    path = folder / "few.yaml"
    path.write_text("schema_version: 1\nname: few\nmethod: max\nimages: 24\nbatch_size: 8\n")
    return path
