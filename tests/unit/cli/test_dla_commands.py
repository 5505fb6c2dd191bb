"""A target with a DLA through the commands: shown, refused before any work, exported, run.

The bundles are real and hold real networks. On the board trtexec is a stand-in (``tests/board``),
whose log of a DLA is a recorded one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tests.board.machine import STAND_INS
from tests.unit.cli.small import call, save_network

STAGE = {"block": "basic", "depth": [1], "width": [16], "expand": [1.0]}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet": {
        "image_size": 8,
        "in_chans": 1,
        "num_classes": 10,
        "stem": [16],
        "stages": [STAGE, STAGE],
    },
    "vit": {
        "image_size": 8,
        "patch_size": 4,
        "in_chans": 1,
        "num_classes": 10,
        "width": [16],
        "depth": [1],
        "heads": [1],
        "head_dim": 16,
        "mlp_ratio": [1],
    },
}


@pytest.fixture(scope="module")
def descendants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A descendant of a convolutional family and one of a transformer."""
    folder = tmp_path_factory.mktemp("net")
    found = {}
    for name, settings in NETWORKS.items():
        net = save_network(folder / f"{name}.safetensors", name, settings)
        told = call("extract", net, "--out", folder / name)
        found[name] = Path(told["path"])
    return found


def test_list_and_show_tell_of_it(run) -> None:
    cells = {
        line.split()[0]: line.split() for line in run("targets", "list").stdout.splitlines()[3:-1]
    }
    assert [cells[name][6] for name in ("agx-orin-64gb", "orin-nx-8gb")] == ["2", "1"]
    assert [cells[name][6] for name in ("orin-nano-8gb", "a10")] == ["-", "-"]
    told = " ".join(run("targets", "show", "orin-nx-16gb").stdout.split())
    assert "a DLA is asked for as orin-nx-16gb+dla or orin-nx-16gb+dla1 (FP16, with jp6.2, " in told
    assert "DLA is asked" not in run("targets", "show", "orin-nano-8gb").stdout
    told = " ".join(run("targets", "show", "orin-nx-16gb+dla1").stdout.split())
    assert "orin-nx-16gb+dla1@jp6.2:MAXN device" in told
    assert "runs on DLA core 1; what it does not run goes to the GPU" in told
    assert "precisions.fp16 plain 2:4 is skipped no" in told
    # The figures are of the whole device, as those of its GPU.
    shown = [
        json.loads(run("targets", "show", f"orin-nx-16gb{part}", "--json").stdout)
        for part in ("", "+dla")
    ]
    assert shown[0]["peak_rates"] == shown[1]["peak_rates"]
    assert [one["dla_core"] for one in shown] == [None, 0]
    assert shown[1]["precisions"] == {"fp16": "plain"}
    assert run("targets", "show", "a10+dla").returncode == 1


def test_a_recipe_is_refused_before_any_work(run, tmp_path: Path) -> None:
    target = "targets=[host-cpu, agx-orin-64gb+dla]"
    told = run("build", "--set", target, "--json")
    assert told.returncode == 1
    error = json.loads(told.stdout)["error"]
    assert "takes INT8 from a calibration cache" in error["what"]
    assert "2:4 sparsity" in error["what"]
    assert "--set quantize=null --set sparsify=null" in error["fix"]
    assert "agx-orin-64gb@jp6.2:MAXN" in error["fix"]
    missing = run("build", "--set", "targets=[orin-nano-8gb+dla]")
    assert missing.returncode == 1
    assert "has no DLA" in missing.stderr
    assert not (tmp_path / "elastic-export-out").exists()
    assert not (tmp_path / "home" / "objects").exists()
    planned = run(
        "build", "--set", target, "--set", "quantize=null", "--set", "sparsify=null", "--dry-run"
    )
    assert planned.returncode == 0, planned.stderr


@pytest.mark.parametrize(
    ("family", "target", "version", "pinned"),
    [
        ("resnet", "agx-orin-64gb+dla1@jp6.2", "10.3.0", False),
        ("vit", "orin-nx-16gb+dla@jp5.1:15W", "8.5.2", True),
    ],
)
def test_a_bundle_goes_to_the_board_and_runs_there(
    descendants: dict[str, Path],
    tmp_path: Path,
    family: str,
    target: str,
    version: str,
    pinned: bool,
) -> None:
    told = call(
        "export", descendants[family], "--target", target, "--data", "digits", "--out", tmp_path
    )
    core = "1" if "+dla1" in target else "0"
    folder = Path(told["folder"])
    assert folder.name == told["target"].replace(":", "-")
    assert "+dla" in folder.name
    assert told["models"] == {"fp16": "model.fp16.onnx"}
    assert told["accuracy"]["fp16"]["how"] == "emulated"
    assert any("convolutional networks are what a DLA is for" in note for note in told["notes"])
    # The weakly typed FP32 file: the builder makes FP16 of it.
    kinds = {one.data_type for one in onnx.load(folder / "model.fp16.onnx").graph.initializer}
    assert TensorProto.FLOAT in kinds
    assert TensorProto.FLOAT16 not in kinds

    plan = json.loads((folder / "device.json").read_text())["precisions"]["fp16"]["releases"]
    assert [release["last"] for release in plan][-1] == [10, 7]
    for release in plan:
        assert release["api"] == {
            "strong": False,
            "fp16": True,
            "int8": False,
            "sparse": False,
            "dla": int(core),
            "pins": release["api"]["pins"],
        }
        assert bool(release["api"]["pins"]) is pinned
        assert release["load"] == [f"--useDLACore={core}"]
    script = (folder / "build_engine_fp16.sh").read_text()
    assert f"    --useDLACore={core} \\\n    --allowGPUFallback \\\n    --fp16 \\\n" in script
    assert "--stronglyTyped" not in script
    assert ("--precisionConstraints=prefer" in script) is pinned
    text = (folder / "README.md").read_text()
    assert f"--loadEngine=ENGINE \\\n  --useDLACore={core} \\\n" in text
    assert f"The engine is for DLA core {core}" in text

    trtexec = tmp_path / "trtexec"
    trtexec.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "{STAND_INS}/trtexec_stand_in.py" "$@"\n'
    )
    trtexec.chmod(0o755)
    out = tmp_path / "result.json"
    run = [
        sys.executable,
        folder / "on_device.py",
        "run",
        "--out",
        out,
        "--seconds=0.2",
        "--rounds=1",
    ]
    done = subprocess.run(
        [*map(str, run), "--warmup-ms=10", "--no-clocks", f"--trtexec={trtexec}"],
        env={**os.environ, "STAND_IN_VERSION": version, "STAND_IN_DLA_CORES": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(out.read_text())["models"].values()
    assert model["accuracy"]["ok"]
    # Half precision rounds, though the file holds FP32.
    assert model["accuracy"]["tolerance"] == pytest.approx(2e-2)
    assert (model["layers"]["on_dla"], model["layers"]["on_gpu"]) == (2, 3)


def test_a_quantized_file_is_refused_there_and_taken_on_the_gpu(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dq"),
        ],
        "net",
        [value("x", TensorProto.FLOAT, [1, 8])],
        [value("y", TensorProto.FLOAT, [1, 8])],
        [scale, helper.make_tensor("z", TensorProto.INT8, [], [0])],
    )
    path = tmp_path / "net.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    for software in ("jp6.2", "jp6.0"):
        assert call("inspect", path, "--target", f"agx-orin-64gb@{software}")["taken"]
        told = call("inspect", path, "--target", f"agx-orin-64gb+dla@{software}", code=3)
        assert not told["taken"]
        assert any("runs no INT8" in finding["problem"] for finding in told["findings"])
