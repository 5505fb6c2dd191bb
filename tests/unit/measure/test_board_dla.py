"""``on_device.py`` and a DLA, on the stand-in for trtexec with a recorded log (``tests/board``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elastic_export.measure.board.dla import count_dla_layers
from elastic_export.measure.board.shell import Teller
from tests.board.machine import Board


@pytest.mark.parametrize("version", ["8.5.2", "8.6.2", "10.3.0"])
def test_a_dla_is_named_in_every_call_and_its_layers_are_counted(
    tmp_path: Path, version: str
) -> None:
    board = Board(tmp_path, "tensorrt", strong=False, dla=1)
    calls = tmp_path / "calls"
    board.install_trtexec(version, STAND_IN_DLA_CORES="2", STAND_IN_ARGUMENTS=str(calls))
    done = board.run("--no-clocks", "--rounds=1")
    assert done.returncode == 0, done.stderr
    (model,) = board.result["models"].values()
    assert model["accuracy"]["ok"]
    assert (model["layers"]["on_dla"], model["layers"]["on_gpu"]) == (2, 3)
    assert "runs on the DLA" not in done.stderr
    asked = [json.loads(line) for line in calls.read_text().splitlines()]
    engines = [call for call in asked if "--help" not in call]
    assert all("--useDLACore=1" in call for call in engines)
    (build,) = [call for call in engines if any(one.startswith("--onnx=") for one in call)]
    assert {"--allowGPUFallback", "--fp16"} <= set(build)
    # Logits, time and profile, each by loading the engine; CUDA graphs do not hold a DLA's work.
    assert sum(any(one.startswith("--loadEngine=") for one in call) for call in engines) >= 3
    assert not any("--useCudaGraph" in call for call in engines)


@pytest.mark.parametrize(("told", "on_dla", "on_gpu"), [("none", 0, 3), ("silent", None, None)])
def test_a_dla_that_runs_nothing_is_told(
    tmp_path: Path, told: str, on_dla: int | None, on_gpu: int | None
) -> None:
    board = Board(tmp_path, "tensorrt", strong=False, dla=0)
    board.install_trtexec("10.3.0", STAND_IN_DLA_CORES="2", STAND_IN_DLA=told)
    done = board.run("--no-clocks", "--rounds=1")
    assert done.returncode == 0, done.stderr
    layers = board.result["models"]["tiny/fp16"]["layers"]
    assert (layers["on_dla"], layers["on_gpu"]) == (on_dla, on_gpu)
    assert ("no layer runs on the DLA" in done.stderr) == (on_dla == 0)


def test_a_board_without_the_dla_or_with_a_release_without_it(tmp_path: Path) -> None:
    board = Board(tmp_path, "tensorrt", strong=False, dla=1)
    board.install_trtexec("10.3.0", STAND_IN_DLA_CORES="1")
    done = board.run("--no-clocks", "--rounds=1")
    assert done.returncode == 1
    assert "Cannot create DLA engine, 1 not available" in done.stderr
    board.install_trtexec("10.16.1", STAND_IN_DLA_CORES="2")
    done = board.run("--no-clocks", "--rounds=1")
    assert done.returncode == 1
    assert "was not made for TensorRT 10.16.1" in done.stderr
    assert "10.3 to 10.7" in done.stderr


@pytest.mark.parametrize(
    ("log", "on_dla", "on_gpu"),
    [
        ("", None, None),
        ("[I] Engine built in 1.5 sec.", None, None),
        # samples/sampleCudla/README.md of NVIDIA/TensorRT
        (
            "[I] [TRT] --------------- Layers running on DLA:\n"
            "[I] [TRT] [DlaLayer] {ForeignNode[(Unnamed Layer* 0) [ElementWise]]},\n"
            "[I] [TRT] --------------- Layers running on GPU:\n[I] [TRT]\n",
            1,
            0,
        ),
        # TensorRT 7 (issue 27 of DeepStream-Yolo) names layers without a tag for each.
        ("Layers running on DLA: \n{conv_1,batch_norm_1}\nLayers running on GPU: \n", None, None),
        # A list that is told twice counts once.
        (2 * "Layers Running on DLA\n[DlaLayer] a\n[GpuLayer] b\n[GpuLayer] c\n", 1, 2),
    ],
)
def test_logs_of_other_forms(log: str, on_dla: int | None, on_gpu: int | None) -> None:
    assert count_dla_layers(log, None, Teller()) == {"on_dla": on_dla, "on_gpu": on_gpu}


@pytest.mark.parametrize("version", ["8.2.1", "8.5.2", "10.3.0"])
def test_the_module_builds_for_a_dla_and_loads_on_its_core(
    tmp_path: Path, cudart: Path, version: str
) -> None:
    board = Board(tmp_path, "tensorrt", strong=False, pins=("head",), dla=1)
    log = tmp_path / "asked.json"
    board.install_module(version, cudart, STAND_IN_LOG=str(log))
    done = board.run("--no-clocks", "--rounds=1")
    assert done.returncode == 0, done.stderr
    asked = json.loads(log.read_text())
    assert {"FP16", "GPU_FALLBACK"} <= set(asked["flags"])
    assert (asked["device"], asked["core"], asked["loaded"]) == ("DLA", 1, 1)
    assert asked["on_gpu"] == [["head", "GPU"]]  # what stays in FP32
    assert board.run("--no-clocks", "--rounds=1", "--fresh").returncode == 0
    assert board.result["models"]["tiny/fp16"]["built"]["reused"]
    assert json.loads(log.read_text())["loaded"] == 1
