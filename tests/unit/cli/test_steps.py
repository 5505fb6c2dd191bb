"""extract, export, bench and inspect on a real, tiny supernet; build interrupted and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.unit.cli.small import SETTINGS, call, save_network

CHOICES = {"depth": [1, 2], "heads": [1, 2], "mlp_ratio": [1, 2]}


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "supernet.safetensors"
    return save_network(path, "vit", {**SETTINGS, **CHOICES})


def _error(*args: object, code: int = 1) -> str:
    error = call(*args, code=code)["error"]
    return f"{error['what']} {error['fix']}"


@pytest.fixture(scope="module")
def descendant(supernet: Path) -> Path:
    told = call("extract", supernet, "--spec", "min", "--out", supernet.parent / "out")
    return Path(told["path"])


def test_extract_by_name_by_yaml_and_by_file(supernet: Path, tmp_path: Path) -> None:
    smallest = call("extract", supernet, "--spec", "min", "--out", tmp_path)
    largest = call("extract", supernet, "--out", tmp_path)
    assert Path(smallest["path"]).is_file()
    assert smallest["macs"] < largest["macs"]
    genes = {**smallest["spec"]}
    by_yaml = call("extract", supernet, "--spec", json.dumps(genes), "--out", tmp_path)
    assert by_yaml["spec_id"] == smallest["spec_id"]
    (tmp_path / "spec.yaml").write_text(json.dumps(genes))
    by_file = call("extract", supernet, "--spec", tmp_path / "spec.yaml", "--out", tmp_path)
    assert by_file["spec_id"] == smallest["spec_id"]


def test_bad_checkpoints_and_specs_are_user_errors(supernet: Path, tmp_path: Path) -> None:
    assert "none.pth" in _error("extract", tmp_path / "none.pth", "--out", tmp_path)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(supernet.read_bytes()[:1000])
    _error("extract", cut, "--out", tmp_path)
    assert "resnet" in _error("extract", supernet, "--family", "resnet", "--out", tmp_path)
    impossible = _error("extract", supernet, "--spec", "{depth: 99}", "--out", tmp_path)
    assert "99" in impossible
    assert "midi" in _error("extract", supernet, "--spec", "midi", "--out", tmp_path)
    assert not list(tmp_path.glob("*.safetensors")) or list(tmp_path.glob("*")) == [cut]


def test_inspect_says_what_each_file_is(supernet: Path, descendant: Path, tmp_path: Path) -> None:
    assert call("inspect", supernet)["kind"] == "supernet"
    assert call("inspect", descendant)["kind"] == "descendant"
    torch.save({"weight": torch.zeros(3, 4)}, tmp_path / "other.pth")
    other = call("inspect", tmp_path / "other.pth")
    assert other["kind"] == "checkpoint"
    assert other["unusable"]["fix"]
    (tmp_path / "text.pth").write_text("no checkpoint")
    assert "text.pth" in _error("inspect", tmp_path / "text.pth")


def test_export_and_bench(descendant: Path, tmp_path: Path) -> None:
    told = call("export", descendant, "--data", "digits", "--out", tmp_path)
    folder = Path(told["folder"])
    assert set(told["models"]) == {"fp32", "int8"}
    assert "bundle" in call("inspect", folder)["kind"]
    timed = call("bench", folder)
    assert {m["precision"]: m["latency"]["median_ms"] > 0 for m in timed["models"]} == {
        "fp32": True,
        "int8": True,
    }
    assert "is a folder, where a descendant is needed" in _error("export", folder)
    (folder / told["models"]["fp32"]).write_bytes(b"changed")
    assert _error("bench", folder, code=3)


def test_only_int8_files_hold_smoothed_weights(descendant: Path, tmp_path: Path) -> None:
    shared = ("export", descendant, "--target", "host-cpu", "--data", "digits")
    plain = call(*shared, "--out", tmp_path / "plain")
    smooth = call(*shared, "--out", tmp_path / "smooth", "--calibration", "smoothquant")
    read = {
        (name, precision): (Path(told["folder"]) / file).read_bytes()
        for name, told in (("plain", plain), ("smooth", smooth))
        for precision, file in told["models"].items()
    }
    assert read["plain", "fp32"] == read["smooth", "fp32"]
    assert read["plain", "int8"] != read["smooth", "int8"]
    assert smooth["checks"]["int8"]["parity"]["relative_error"] <= 1e-1


def test_a_target_without_int8_is_told_before_anything_is_calibrated(
    descendant: Path, tmp_path: Path
) -> None:
    told = call(
        "export", descendant, "--target", "jetson-nano", "--data", "digits", "--out", tmp_path
    )
    assert set(told["models"]) == {"fp32", "fp16"}
    assert any("does not run INT8" in note for note in told["notes"])
    # What is fast here says nothing about a board.
    measured = call("bench", told["folder"])
    assert measured["chosen"] == {}
    assert "another device" in measured["notes"][0]
    # FP16 is the builder's choice there: the file is FP32, and the engine's logits are FP16's.
    manifest = json.loads((Path(told["folder"]) / "manifest.json").read_text())
    assert manifest["sample"]["tolerance"] == {"fp32": 1e-4, "fp16": 2e-2}


def test_fp32_is_held_against_what_the_device_multiplies_in(
    descendant: Path, tmp_path: Path
) -> None:
    """TensorRT uses TF32 from compute capability 8.0 on; ONNX Runtime's CPU never does."""
    for target, fp32 in (("orin-nano-8gb@jp5.1", 2e-2), ("xavier-nx", 1e-4), ("host-cpu", 1e-4)):
        told = call("export", descendant, "--target", target, "--out", tmp_path)
        manifest = json.loads((Path(told["folder"]) / "manifest.json").read_text())
        assert manifest["sample"]["tolerance"]["fp32"] == fp32


def test_export_needs_real_data_and_a_known_target(descendant: Path, tmp_path: Path) -> None:
    assert "--data" in _error("export", descendant, "--data", "mnist", "--out", tmp_path)
    assert "a10" in _error("export", descendant, "--target", "a11", "--out", tmp_path)
    assert "maxx" in _error("export", descendant, "--calibration", "maxx", "--out", tmp_path)


TINY = {
    "schema_version": 1,
    "name": "tiny",
    "model": {"family": "vit", "config": {**SETTINGS, **CHOICES, "pos_std": 0.5}},
    "data": {"dataset": "digits"},
    "train": {"steps": 100000, "batch_size": 16, "checkpoint_every": 5, "random_specs": 0},
    "descend": {"specs": ["min"]},
    "targets": ["host-cpu"],
}


@pytest.mark.timeout(240)
def test_an_interrupted_build_keeps_its_steps(
    entry: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    process = subprocess.Popen(
        [str(entry), "build", "tiny.yaml", "--out", "out", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        # A suite that runs in the background hands an ignored SIGINT down to its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    work = Path(environment["ELASTIC_EXPORT_HOME"]) / "work"
    deadline = time.monotonic() + 120
    while not list(work.glob("*/state.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    told, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    error = json.loads(told)["error"]
    assert error["kind"] == "interrupted"
    assert str(work.parent) in error["fix"]
    assert list(work.glob("*/state.pt"))
    assert not os.path.exists(tmp_path / "out" / "report.json")
