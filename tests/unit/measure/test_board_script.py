"""``on_device.py`` as a person at the board runs it: a process, a bundle, and what it leaves.

ONNX Runtime measures for real. trtexec, jetson_clocks, nvpmodel and tegrastats are stand-ins that
reproduce the recorded formats of each release (``tests/board``); they compute logits for real.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import onnxruntime
import pytest

from tests.board.bundles import RELEASES, make_bundle, network
from tests.board.machine import Board


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
    assert done.returncode == 3
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


@pytest.mark.parametrize("version", ["8.2.1", "8.5.2", "10.3.0", "11.1.0"])
def test_the_tensorrt_module_of_every_release(tmp_path: Path, cudart: Path, version: str) -> None:
    strong = version.startswith("1")
    board = Board(tmp_path, "tensorrt", strong=strong, pins=() if strong else ("head",))
    log = tmp_path / "asked.json"
    board.install_module(version, cudart, STAND_IN_LOG=str(log))
    arguments = ("--no-clocks", "--precision=int8", "--rounds=2")
    done = board.run(*arguments)
    assert done.returncode == 0, done.stderr
    model = board.result["models"]["tiny/int8"]
    assert board.result["board"]["tensorrt"] == version
    assert model["runtime"] == "tensorrt"
    assert model["flags"] == ["unpinned"]
    assert model["accuracy"]["ok"]
    assert 0 < model["gpu_compute_ms"]["median"] <= model["latency_ms"]["median"]
    asked = json.loads(log.read_text())
    assert "SPARSE_WEIGHTS" in asked["flags"]
    assert ("FP16" in asked["flags"]) != strong
    assert asked["pinned"] == ([] if strong else [["head", "float32"]])
    assert asked["network"] == [3 if strong else 1]
    assert asked["workspace"][0] == ("max_workspace_size" if version == "8.2.1" else "WORKSPACE")
    assert asked["timings"] == 0
    again = board.run(*arguments, "--fresh")
    assert again.returncode == 0
    # A reused engine tells its layers, and what its builder said of them, all the same.
    assert board.result["models"]["tiny/int8"]["built"]["reused"]
    for layers in (model["layers"], board.result["models"]["tiny/int8"]["layers"]):
        assert (layers["layers"], layers["int8_layers"], layers["fused_attention"]) == (3, 1, 1)
        assert layers["eligible_sparse"] == ["fc1", "fc2"]
        assert layers["picked_sparse"] == ["fc1"]
        assert layers["profile"][0] == {"name": "fc1", "ms": 3.0}
    # What another model's build timed is not timed again.
    done = board.run("--no-clocks", "--precision=fp32", "--rounds=2", "--no-profile")
    assert done.returncode == 0
    assert json.loads(log.read_text())["timings"] > 0


@pytest.mark.parametrize(
    ("failure", "more", "mib", "retries"),
    [("", {"STAND_IN_MOST_MIB": "300"}, 256, 2), ("killed", {}, 128, 3)],
)
def test_the_module_tries_with_less_memory(
    tmp_path: Path, cudart: Path, failure: str, more: dict[str, str], mib: int, retries: int
) -> None:
    """The kernel kills the builder's process and not the script's."""
    board = Board(tmp_path, "tensorrt")
    board.install_module("10.3.0", cudart, STAND_IN_FAIL=failure, **more)
    done = board.run("--no-clocks", "--precision=int8", "--rounds=1")
    assert done.returncode == 0, done.stderr
    built = board.result["models"]["tiny/int8"]["built"]
    assert (built["workspace_mb"], built["retries"]) == (mib, retries)


def test_what_the_module_refuses_is_not_tried_again(tmp_path: Path, cudart: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    board.install_module("10.3.0", cudart, STAND_IN_FAIL="refused")
    done = board.run("--no-clocks", "--rounds=1", "--precision=int8")
    assert done.returncode == 1
    model = board.result["models"]["tiny/int8"]
    assert "Could not find any implementation for node head" in model["error"]["what"]
    assert "Could not find" in model["log_tail"][-1]
    assert "trying" not in done.stderr


def test_an_engine_of_another_gpu_is_built_again(tmp_path: Path, cudart: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    board.install_module("10.3.0", cudart)
    arguments = ("--no-clocks", "--rounds=1", "--no-profile", "--precision=int8", "--fresh")
    assert board.run(*arguments).returncode == 0
    (engine,) = tmp_path.glob("bundle.engine/*.engine")
    engine.write_bytes(b"9.0.0 detailed\n")
    (timings,) = tmp_path.glob("bundle.engine/timing.*.cache")
    timings.write_bytes(b"damaged")
    done = board.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert not board.result["models"]["tiny/int8"]["built"]["reused"]
    assert timings.read_bytes() == b"+built"


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
    board.install_module("8.2.1", cudart)
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


@pytest.mark.parametrize("version", ["8.2.1", "10.3.0"])
def test_the_warm_up_is_no_part_of_the_figures(tmp_path: Path, version: str) -> None:
    """8.2 writes the inferences of the warm-up into its file, later releases do not."""
    board = Board(tmp_path, "tensorrt", strong=version.startswith("1"))
    board.install_trtexec(version, STAND_IN_SECONDS="0")
    done = board.run(
        "--no-clocks", "--rounds=1", "--no-profile", "--precision=int8", "--warmup-ms=200"
    )
    assert done.returncode == 0, done.stderr
    # Ten iterations are the least that trtexec makes; those of the warm-up are hundreds.
    assert board.result["models"]["tiny/int8"]["latency_ms"]["n"] == 10


def _without(board: Board, *modules: str) -> None:
    hidden = board.tmp / "hidden"
    hidden.mkdir()
    for name in modules:
        (hidden / f"{name}.py").write_text("raise ImportError('none here')\n")
    board.environment["PYTHONPATH"] = str(hidden)


def test_onnx_runtime_steps_in_where_there_is_no_tensorrt(tmp_path: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    _without(board, "tensorrt")
    done = board.run("--rounds=1", "--precision=fp32")
    assert done.returncode == 0, done.stderr
    assert "is made for tensorrt" in done.stderr
    model = board.result["models"]["tiny/fp32"]
    assert model["runtime"] == "onnxruntime"
    assert model["built"]["provider"] == "CPUExecutionProvider"
    assert "other_runtime" in model["flags"]
    assert model["accuracy"]["ok"]
    # TensorRT comes to the board: what ONNX Runtime took is no result of it.
    board.install_trtexec("10.3.0")
    done = board.run("--rounds=1", "--precision=fp32")
    assert "measured before" not in done.stderr
    model = board.result["models"]["tiny/fp32"]
    assert (model["runtime"], model["flags"]) == ("trtexec", ["unpinned"])


def test_the_provider_is_the_one_that_the_session_has(tmp_path: Path) -> None:
    """A package may offer CUDA on a machine without it; it falls back without a word."""
    board = Board(tmp_path, "tensorrt")
    _without(board, "tensorrt")
    hidden = board.tmp / "hidden"
    site = Path(onnxruntime.__file__).parents[1]
    (hidden / "onnxruntime.py").write_text(
        f"import sys\nhere = sys.path.pop(0) if sys.path[0] == {str(hidden)!r} else None\n"
        f"sys.path = [p for p in sys.path if p != {str(hidden)!r}]\n"
        f"del sys.modules['onnxruntime']\nsys.path.insert(0, {str(site)!r})\n"
        "import onnxruntime as real\n"
        "offered = ['TensorrtExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider']\n"
        "real.get_available_providers = lambda: offered\n"
        "sys.modules['onnxruntime'] = real\n"
    )
    done = board.run("--rounds=1", "--precision=fp32")
    assert done.returncode == 0, done.stderr
    assert board.result["models"]["tiny/fp32"]["built"]["provider"] == "CPUExecutionProvider"


def test_neither_trtexec_nor_a_module(tmp_path: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    _without(board, "tensorrt", "onnxruntime")
    done = board.run()
    assert done.returncode == 1
    assert "There is neither trtexec nor a Python module tensorrt" in done.stderr
    assert "Install TensorRT" in done.stderr
    assert "Traceback" not in done.stderr
    done = board.run("--runtime=tensorrt")
    assert done.returncode == 1
    assert "TensorRT" in done.stderr


def test_a_result_of_an_older_script_is_not_taken(tmp_path: Path) -> None:
    board = Board(tmp_path)
    assert board.run("--rounds=2", "--precision=fp32").returncode == 0
    state = board.result
    board.out.write_text(json.dumps({**state, "schema_version": 1}))
    done = board.run("--rounds=2", "--precision=fp32")
    assert done.returncode == 0
    assert "measured before" not in done.stderr
    assert board.result["schema_version"] == state["schema_version"]


def test_layers_that_an_interrupt_cost_are_measured_again(tmp_path: Path) -> None:
    board = Board(tmp_path, "tensorrt")
    board.install_trtexec("10.3.0")
    arguments = ("--no-clocks", "--rounds=1", "--precision=int8")
    assert board.run(*arguments, "--no-profile").returncode == 0
    assert "layers" not in board.result["models"]["tiny/int8"]
    assert board.run(*arguments).returncode == 0
    assert board.result["models"]["tiny/int8"]["layers"]["layers"] == 3
