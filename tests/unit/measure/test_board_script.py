"""``on_device.py`` as a person at the board runs it: a process, a bundle, and what it leaves.

ONNX Runtime measures for real. trtexec, jetson_clocks, nvpmodel and tegrastats are stand-ins that
reproduce the recorded formats of each release (``tests/board``); they compute logits for real.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.board.bundles import RELEASES, make_bundle, network
from tests.board.machine import STAND_INS, Board, jetson


def test_onnx_runtime_measures_for_real(tmp_path: Path) -> None:
    board = Board(tmp_path)
    done = board.run("--progress=json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"phase", "progress"} <= {event["event"] for event in events}
    result = board.result
    assert result["complete"]
    assert set(result["models"]) == {"tiny/fp32", "tiny/int8"}
    for model in result["models"].values():
        assert model["error"] is None
        assert model["accuracy"]["ok"]
        assert len(model["samples_ms"]) == 10
        figures = model["latency_ms"]
        assert 0 < figures["min"] <= figures["median"] <= figures["p90"] <= figures["p99"]
        assert model["settled"] == (model["why"] == "")
        assert "unpinned" in model["flags"]
    again = board.run("--progress=json")
    assert again.returncode == 0
    assert "measured before" in again.stderr
    assert board.result["models"] == result["models"]


def test_logits_that_differ_are_told(tmp_path: Path) -> None:
    board = Board(tmp_path)
    other = make_bundle(tmp_path / "other", name="other")
    shutil.rmtree(tmp_path / "other.work")
    manifest = json.loads((other / "manifest.json").read_text())
    network(other / "model.int8.onnx", 1.5)
    done = board.run("--with", str(other))
    assert done.returncode == 1
    assert "was changed" in done.stderr
    # Somebody who changes the model and its digest is found out by the sample.
    digest = hashlib.sha256((other / "model.int8.onnx").read_bytes()).hexdigest()
    manifest["files"]["model.int8.onnx"]["sha256"] = digest
    (other / "manifest.json").write_text(json.dumps(manifest))
    done = board.run("--with", str(other), "--precision=int8")
    assert done.returncode == 3, done.stderr
    models = board.result["models"]
    assert models["tiny/int8"]["accuracy"]["ok"]
    assert not models["other/int8"]["accuracy"]["ok"]
    assert "wrong_logits" in models["other/int8"]["flags"]


@pytest.mark.parametrize("version", RELEASES)
def test_trtexec_of_every_release(tmp_path: Path, version: str) -> None:
    board = Board(tmp_path, "tensorrt", strong=version.startswith("1"))
    board.install_trtexec(version)
    done = board.run("--no-clocks", "--rounds=2", "--precision=int8")
    assert done.returncode == 0, done.stderr
    result = board.result
    assert result["board"]["tensorrt"] == version
    for model in result["models"].values():
        assert model["runtime"] == "trtexec"
        assert model["accuracy"]["ok"], model
        assert model["built"]["workspace_mb"] == 1024
        assert model["gpu_compute_ms"]["median"] < model["latency_ms"]["median"]
        assert not model["settled"]
        layers = model["layers"]
        assert layers["eligible_sparse"] == ["fc1", "fc2"]
        assert layers["picked_sparse"] == ["fc1"]
        assert layers["fused_attention"] == 1
        assert layers["int8_layers"] == 1
        assert (layers["on_dla"], layers["on_gpu"]) == (None, None)
        assert next(row["name"] for row in layers["profile"]) == "fc1"
    again = board.run("--no-clocks", "--rounds=1", "--fresh", "--no-profile", "--precision=int8")
    assert again.returncode == 0
    assert board.result["models"]["tiny/int8"]["built"]["reused"]


@pytest.mark.parametrize(
    ("failure", "mib", "retries"), [("memory:300", 256, 2), ("killed", 128, 3)]
)
def test_little_memory_is_tried_with_less(
    tmp_path: Path, failure: str, mib: int, retries: int
) -> None:
    board = Board(tmp_path, "tensorrt", strong=False)
    board.install_trtexec("8.5.2", STAND_IN_FAIL=failure)
    done = board.run("--no-clocks", "--rounds=2", "--precision=int8", "--no-profile")
    assert done.returncode == 0, done.stderr
    built = board.result["models"]["tiny/int8"]["built"]
    assert (built["workspace_mb"], built["retries"]) == (mib, retries)
    assert "trying 512 MiB" in done.stderr


@pytest.mark.parametrize(
    ("failure", "what"),
    [("disk", "disk is full"), ("parse", "Failed to parse onnx file"), ("memory:1", "memory")],
)
def test_a_build_that_fails_is_told(tmp_path: Path, failure: str, what: str) -> None:
    board = Board(tmp_path, "tensorrt")
    board.install_trtexec("10.3.0", STAND_IN_FAIL=failure)
    done = board.run("--no-clocks", "--rounds=2")
    assert done.returncode == 1
    result = board.result
    assert not result["complete"]
    for model in result["models"].values():
        assert what in model["error"]["what"]
        assert model["error"]["remedy"]
    assert not list(tmp_path.rglob("*.part"))


@pytest.fixture(scope="module")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real shared library that stands in for the CUDA runtime."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler (Debian package gcc)")
    folder = tmp_path_factory.mktemp("cudart")
    source, library = STAND_INS / "cudart_stand_in.c", folder / "libcudart.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return folder


@pytest.mark.parametrize("version", ["8.2.1", "8.5.2", "10.3.0", "11.1.0"])
def test_the_tensorrt_module_of_every_release(tmp_path: Path, cudart: Path, version: str) -> None:
    strong = version.startswith("1")
    board = Board(tmp_path, "tensorrt", strong=strong, pins=() if strong else ("head",))
    log = tmp_path / "asked.json"
    board.environment.update(
        PYTHONPATH=str(STAND_INS / "tensorrt_stand_in"),
        LD_LIBRARY_PATH=str(cudart),
        STAND_IN_VERSION=version,
        STAND_IN_LOG=str(log),
    )
    arguments = ("--no-clocks", "--precision=int8", "--rounds=2")
    done = board.run(*arguments)
    assert done.returncode == 0, done.stderr
    model = board.result["models"]["tiny/int8"]
    assert model["runtime"] == "tensorrt"
    assert model["accuracy"]["ok"]
    assert 0 < model["gpu_compute_ms"]["median"] <= model["latency_ms"]["median"]
    asked = json.loads(log.read_text())
    assert "SPARSE_WEIGHTS" in asked["flags"]
    assert ("FP16" in asked["flags"]) != strong
    assert asked["pinned"] == ([] if strong else [["head", "float32"]])
    assert asked["network"] == [3 if strong else 1]
    assert asked["workspace"][0] == ("max_workspace_size" if version == "8.2.1" else "WORKSPACE")
    again = board.run(*arguments, "--fresh")
    assert again.returncode == 0
    assert board.result["models"]["tiny/int8"]["built"]["reused"]


@pytest.mark.parametrize("version", ["8.2.1", "8.5.2", "10.3.0"])
def test_the_module_builds_for_a_dla_and_loads_on_its_core(
    tmp_path: Path, cudart: Path, version: str
) -> None:
    board = Board(tmp_path, "tensorrt", strong=False, pins=("head",), dla=1)
    log = tmp_path / "asked.json"
    board.environment.update(
        PYTHONPATH=str(STAND_INS / "tensorrt_stand_in"),
        LD_LIBRARY_PATH=str(cudart),
        STAND_IN_VERSION=version,
        STAND_IN_LOG=str(log),
    )
    done = board.run("--no-clocks", "--rounds=1")
    assert done.returncode == 0, done.stderr
    asked = json.loads(log.read_text())
    assert {"FP16", "GPU_FALLBACK"} <= set(asked["flags"])
    assert (asked["device"], asked["core"], asked["loaded"]) == ("DLA", 1, 1)
    assert asked["on_gpu"] == [["head", "GPU"]]  # what stays in FP32
    assert board.run("--no-clocks", "--rounds=1", "--fresh").returncode == 0
    assert board.result["models"]["tiny/fp16"]["built"]["reused"]
    assert json.loads(log.read_text())["loaded"] == 1


def test_the_module_tries_with_less_memory(tmp_path: Path, cudart: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    board.environment.update(
        PYTHONPATH=str(STAND_INS / "tensorrt_stand_in"),
        LD_LIBRARY_PATH=str(cudart),
        STAND_IN_VERSION="10.3.0",
        STAND_IN_MOST_MIB="300",
    )
    done = board.run("--no-clocks", "--precision=int8", "--rounds=1")
    assert done.returncode == 0, done.stderr
    built = board.result["models"]["tiny/int8"]["built"]
    assert (built["workspace_mb"], built["retries"]) == (256, 2)


def test_engines_of_equal_models_built_differently_are_two(tmp_path: Path) -> None:
    """Weakly typed, FP32 and FP16 are one file and differ in what the builder may use."""
    board = Board(tmp_path, "tensorrt", strong=False)
    board.install_trtexec("8.5.2")
    manifest = json.loads((board.bundle / "manifest.json").read_text())
    manifest["models"]["int8"] = manifest["models"]["fp32"]
    (board.bundle / "manifest.json").write_text(json.dumps(manifest))
    engines = tmp_path / "engines"
    board.run("--no-clocks", "--rounds=1", "--no-profile", "--engine-dir", str(engines))
    assert len(list(engines.glob("*.engine"))) == 2


def test_a_damaged_note_beside_an_engine_means_building_again(tmp_path: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    board.install_trtexec("10.3.0")
    arguments = ("--no-clocks", "--rounds=1", "--no-profile", "--precision=int8", "--fresh")
    assert board.run(*arguments).returncode == 0
    (note,) = tmp_path.glob("bundle.engine/*.engine.json")
    note.write_text("")
    assert board.run(*arguments).returncode == 0
    assert not board.result["models"]["tiny/int8"]["built"]["reused"]


def test_a_result_of_other_options_is_not_taken(tmp_path: Path) -> None:
    board = Board(tmp_path)
    assert board.run("--rounds=2").returncode == 0
    before = board.result["models"]
    done = board.run("--rounds=2", "--precision=fp32")
    assert "measured before" in done.stderr
    assert board.result["models"] == before  # what was not asked for stays as well
    done = board.run("--rounds=3", "--precision=fp32")
    assert "measured before" not in done.stderr
    assert set(board.result["models"]) == {"tiny/fp32"}
    assert len(board.result["models"]["tiny/fp32"]["samples_ms"]) == 3


def test_layers_that_trtexec_cannot_pin_are_pinned_by_the_module(
    tmp_path: Path, cudart: Path
) -> None:
    board = Board(tmp_path, "tensorrt", strong=False, pins=("head",))
    board.install_trtexec("8.2.1")
    board.environment.update(
        PYTHONPATH=str(STAND_INS / "tensorrt_stand_in"), LD_LIBRARY_PATH=str(cudart)
    )
    done = board.run("--no-clocks", "--rounds=1")
    assert done.returncode == 0, done.stderr
    models = board.result["models"]
    assert models["tiny/int8"]["runtime"] == "tensorrt"
    assert models["tiny/fp32"]["runtime"] == "trtexec"


def test_a_release_the_bundle_was_not_made_for(tmp_path: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    board.install_trtexec("8.0.1")
    done = board.run()
    assert done.returncode == 1
    assert "was not made for TensorRT 8.0.1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--seconds=-1",), "must be a positive number"),
        (("--rounds=0",), "must be 1 or more"),
        (("--bogus",), "on_device.py run: error: unknown: --bogus"),
    ],
)
def test_wrong_options_show_how_it_is_used(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    board = Board(tmp_path)
    done = board.run(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "--no-clocks" in done.stderr


def test_a_result_that_cannot_be_written(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.out = tmp_path / "nowhere" / "result.json"
    done = board.run()
    assert done.returncode == 1
    assert "There is no folder" in done.stderr


def test_a_machine_without_onnx_runtime_says_so(tmp_path: Path) -> None:
    board = Board(tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "onnxruntime.py").write_text("raise ImportError('none here')\n")
    board.environment["PYTHONPATH"] = str(hidden)
    done = board.run()
    assert done.returncode == 1
    assert "pip install onnxruntime" in done.stderr
    assert "Measuring" not in done.stderr
    assert not board.result["complete"]


def test_neither_trtexec_nor_the_module(tmp_path: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    done = board.run()
    assert done.returncode == 1
    assert "TensorRT" in done.stderr
    assert "Traceback" not in done.stderr


def test_clocks_power_and_mode(tmp_path: Path) -> None:
    board = Board(tmp_path)
    log = jetson(board)
    done = board.run("--precision=fp32", "--seconds=4", "--idle-seconds=0.5")
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert [call.split()[0] if call else "pin" for call in calls] == ["--store", "pin", "--restore"]
    result = board.result
    assert result["board"]["power_mode"] == "15W"
    assert result["methodology"]["clocks_pinned"]
    model = result["models"]["tiny/fp32"]
    assert "unpinned" not in model["flags"]
    energy = model["energy_mj"]
    assert energy["rail"] == "VDD_IN"
    assert energy["idle_w"] == pytest.approx(5.0)
    assert energy["load_w"] == pytest.approx(5.0)
    assert energy["net_of_idle"] == pytest.approx(0.0, abs=1e-6)
    assert energy["per_inference"] > 0


def test_a_change_of_mode_and_a_clock_that_drops_are_marked(tmp_path: Path) -> None:
    board = Board(tmp_path)
    jetson(board)
    count = tmp_path / "count"
    # The mode changes while it is measured, and the clock that nvidia-smi tells falls by half.
    later = 'n=$(($(cat "{count}" 2>/dev/null || echo 0) + 1)); echo $n > "{count}"\n'
    board.install(
        "nvpmodel",
        "#!/bin/sh\n"
        + later.format(count=count)
        + '[ $n -lt 6 ] && echo "NV Power Mode: MODE_15W" || echo "NV Power Mode: MODE_7W"\n',
    )
    board.install(
        "nvidia-smi",
        "#!/bin/sh\n"
        + later.format(count=f"{count}.clock")
        + 'case "$*" in *clocks.sm*) [ $n -lt 12 ] && echo 1000 || echo 500 ;;\n'
        + "*) echo N/A ;; esac\n",
    )
    done = board.run("--precision=fp32", "--no-power", "--idle-seconds=0.1")
    assert done.returncode == 0, done.stderr
    flags = board.result["models"]["tiny/fp32"]["flags"]
    assert "mode_changed" in flags
    assert "throttled" in flags


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ()),
        (signal.SIGHUP, ()),
        (signal.SIGTERM, ("--detached",)),
    ],
)
def test_an_interrupt_restores_the_clocks(
    tmp_path: Path, kind: signal.Signals, options: tuple[str, ...]
) -> None:
    board = Board(tmp_path)
    log = jetson(board)
    process = subprocess.Popen(
        board.command("--seconds=60", "--precision=fp32", *options),
        env=board.environment,
        stderr=subprocess.PIPE,
        text=True,
        # A background shell ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.time() + 60
    while "--store" not in (log.read_text() if log.exists() else "") and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(kind)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert log.read_text().splitlines()[-1].startswith("--restore")
    assert not board.result["complete"]
    assert "Traceback" not in err
