"""``bench`` and ``compile`` with a stand-in of the ``tensorrt`` module and of a GPU.

The stand-in's engines compute real logits with ONNX Runtime, in ordinary memory
(``tests/unit/engine/stand_ins.py``); times and kernels are not TensorRT's. ``tests/gpu`` runs the
same commands with the real module where there is a GPU.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from typer.testing import CliRunner

from elastic_export.cli.app import app
from elastic_export.engine import builder
from elastic_export.engine.builder import EngineBuilder
from elastic_export.engine.bundle import load_bundle
from elastic_export.engine.runners import OrtRunner, TensorrtRunner
from elastic_export.engine.sidecar import read_header
from elastic_export.pipeline.benching import runners
from tests.unit.cli.small import call
from tests.unit.cli.test_bench_command import with_wrong_sample
from tests.unit.engine.stand_ins import importable, plan_of

BundleFor = Callable[[str], Path]
Install = Callable[[str], None]
JP62, JP51, DLA = "orin-nano-8gb@jp6.2", "orin-nano-8gb@jp5.1", "agx-orin-64gb+dla1@jp6.2"


@pytest.fixture
def install(bundle_for: BundleFor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Let this machine have the GPU of an Orin and the stand-in of one TensorRT release."""
    for target in (JP62, JP51, DLA):
        bundle_for(target)  # exported while torch still sees the machine as it is

    def _install(version: str, sm: tuple[int, int] = (8, 7)) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", importable(version))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: sm)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Stand-in GPU")
        monkeypatch.setattr(runners, "TensorrtRunner", partial(TensorrtRunner, device="cpu"))
        builder.installed.cache_clear()

    yield _install
    builder.installed.cache_clear()


@pytest.fixture
def bundle(bundle_for: BundleFor, tmp_path: Path) -> Callable[[str], Path]:
    return lambda target: shutil.copytree(bundle_for(target), tmp_path / "bundle")


def test_a_bundle_runs_on_its_own_runtime(install: Install, bundle: BundleFor) -> None:
    install("10.3.0")
    folder = bundle(JP62)
    told = call("bench", folder)
    assert {(one["runner"], one["precision"]) for one in told["models"]} == {
        ("tensorrt", precision) for precision in ("fp32", "fp16", "int8")
    }
    for one in told["models"]:
        assert one["logits"]["ok"]
        assert one["deployed"]
        assert not one["marks"]
        assert one["engine"]["status"] == "built"
        assert not one["engine"]["reused"]
        assert one["runs"]["device"] == "sm_87"
        assert Path(one["engine"]["file"]).parent == folder.with_name("bundle.engine")
    assert told["machine"]["gpu"] == {"name": "Stand-in GPU", "sm": 87}
    (chosen,) = told["chosen"].values()
    assert "fp16" in chosen["why"]
    assert any("way of the image there" in note for note in told["notes"])
    load_bundle(folder)
    again = call("bench", folder)
    assert all(one["engine"]["reused"] for one in again["models"])
    fresh = call("bench", folder, "--fresh", "--precision", "fp16")
    assert [one["engine"]["reused"] for one in fresh["models"]] == [False]
    compiled = call("compile", folder)
    assert all(engine["reused"] for engine in compiled["engines"])
    assert list(folder.with_name("bundle.engine").glob("timing.trt10.3.0.Stand-in-GPU.cache"))


def test_a_bundle_for_a_dla_is_built_and_loaded_for_its_core(
    install: Install, bundle: BundleFor
) -> None:
    install("10.3.0")
    told = call("bench", bundle(DLA))
    (one,) = told["models"]
    assert (one["precision"], one["deployed"], one["marks"]) == ("fp16", True, [])
    plan = plan_of(Path(one["engine"]["file"]))
    assert (plan["device"], plan["dla"]) == ("DLA", 1)
    assert {"FP16", "GPU_FALLBACK"} <= set(plan["flags"])


def test_timings_that_nobody_named_begin_anew_where_they_are_damaged(
    install: Install, bundle: BundleFor
) -> None:
    install("10.3.0")
    folder = bundle(JP62)
    call("compile", folder, "--precision", "fp16")
    (timings,) = folder.with_name("bundle.engine").glob("timing.*.cache")
    kept = timings.read_bytes()
    timings.write_bytes(b"junk")
    call("compile", folder, "--precision", "fp16", "--fresh")
    assert timings.read_bytes() == kept
    timings.write_bytes(b"junk")
    error = call("compile", folder, "--fresh", "--timing-cache", timings, code=1)["error"]
    assert "is damaged" in error["what"]
    assert timings.read_bytes() == b"junk"


def test_options_come_from_the_plan_of_the_release(install: Install, bundle: BundleFor) -> None:
    install("8.5.2.2")
    told = call("bench", bundle(JP51))
    plans = {one["precision"]: plan_of(Path(one["engine"]["file"])) for one in told["models"]}
    assert plans["fp32"]["flags"] == []
    assert plans["fp16"]["flags"] == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    assert plans["int8"]["flags"] == ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]
    # The parts of a decomposed LayerNorm stay in FP32.
    assert len(plans["fp16"]["pinned"]) > 5
    assert all(name.endswith(".fp32") for name in plans["fp16"]["pinned"])


@pytest.mark.parametrize(
    ("version", "sm", "target", "why"),
    [
        ("10.3.0", (8, 6), JP62, "the GPU here is sm_86, not sm_87"),
        ("11.1.0", (8, 7), JP51, "was not made for TensorRT 11.1.0, but for TensorRT 8.2 to 8.2"),
    ],
)
def test_where_it_does_not_fit_onnx_runtime_does(
    install: Install,
    bundle: BundleFor,
    version: str,
    sm: tuple[int, int],
    target: str,
    why: str,
) -> None:
    install(version, sm)
    told = call("bench", bundle(target), "--precision", "fp32")
    assert [one["runner"] for one in told["models"]] == ["onnxruntime"]
    assert told["models"][0]["marks"] == ["elsewhere"]
    assert why in told["notes"][0]
    assert told["chosen"] == {}


def test_another_gpu_is_marked_where_it_was_asked_for(install: Install, bundle: BundleFor) -> None:
    install("10.3.0", (8, 6))
    told = call("bench", bundle(JP62), "--runner", "tensorrt", "--precision", "fp16")
    (one,) = told["models"]
    assert (one["marks"], one["engine"]["sm"]) == (["elsewhere"], 86)
    assert told["chosen"] == {}


def test_a_release_that_cannot_build_it_is_an_error(install: Install, bundle: BundleFor) -> None:
    install("11.1.0")
    error = call("bench", bundle(JP51), "--runner", "tensorrt", code=1)["error"]
    assert "was not made for TensorRT 11.1.0" in error["what"]


def test_fp32_of_a_gpu_may_be_tf32(install: Install, bundle: BundleFor, tmp_path: Path) -> None:
    install("10.3.0")
    how = ("--runner", "tensorrt", "--precision", "fp32")
    made = bundle(JP62)
    rounded = with_wrong_sample(made, tmp_path / "rounded", 1e-3)
    assert [one["logits"]["ok"] for one in call("bench", rounded, *how)["models"]] == [True]
    wrong = with_wrong_sample(made, tmp_path / "wrong", 5e-2)
    assert [one["logits"]["ok"] for one in call("bench", wrong, *how, code=3)["models"]] == [False]


def test_an_onnx_file(install: Install, bundle: BundleFor, tmp_path: Path) -> None:
    install("8.6.2.3")
    file = shutil.copy(bundle(JP51) / "model.int8.onnx", tmp_path / "net.onnx")
    told = call("bench", file, "--runner", "tensorrt")
    (one,) = told["models"]
    # A release with weak typing alone is allowed what the file holds.
    assert plan_of(Path(one["engine"]["file"]))["flags"] == ["FP16", "INT8", "SPARSE_WEIGHTS"]
    assert (one["logits"], one["precision"], one["marks"]) == (None, "int8", [])


def test_compile_reports_what_the_builder_does(
    install: Install, bundle: BundleFor, tmp_path: Path
) -> None:
    install("10.16.1")
    file = shutil.copy(bundle(JP62) / "model.fp16.onnx", tmp_path / "net.onnx")
    args = ("--level", 2, "--workspace", 32, "--hardware", "ampere-plus")
    told = call("compile", file, *args, "--timing-cache", tmp_path / "shared.cache")
    (engine,) = told["engines"]
    assert (told["runtime"], engine["status"], engine["sm"]) == ("TensorRT", "built", 87)
    assert (engine["layers"], engine["int8_layers"], engine["fused_attention"]) == (3, 2, 1)
    assert len(engine["picked_sparse"]) == 1 < len(engine["eligible_sparse"])
    plan = plan_of(Path(engine["file"]))
    assert (plan["level"], plan["hardware"]) == (2, "AMPERE_PLUS")
    assert plan["pools"] == {"WORKSPACE": 32 << 20}
    assert (tmp_path / "shared.cache").is_file()
    shown = CliRunner().invoke(app, ["compile", str(file), *map(str, args)]).stdout
    assert f"1 of {len(engine['eligible_sparse'])}" in shown
    assert ", kept" in shown
    assert "Built for the GPU of this machine" in shown
    header = read_header(Path(engine["file"]))
    assert (header.gpu, header.hardware) == ("Stand-in GPU", "ampere_plus")


def test_compile_with_weak_typing_and_refusals(
    install: Install, bundle: BundleFor, tmp_path: Path
) -> None:
    install("10.16.1")
    folder = bundle(JP62)
    file = shutil.copy(folder / "model.fp32.onnx", tmp_path / "net.onnx")
    (engine,) = call("compile", file, "--fp16", "--no-sparse")["engines"]
    assert (engine["typing"], engine["flags"]) == ("weak", ["FP16"])
    other = call("compile", file, "--sm", 86, code=1)["error"]
    assert "of this machine, sm_87, not for sm_86" in other["what"]
    int8 = call("compile", file, "--int8", code=1)["error"]
    assert "holds no Q/DQ" in int8["what"]
    install("10.16.1", (8, 6))
    wrong = call("compile", folder, code=1)["error"]
    assert "are built on the board itself, and this machine is none" in wrong["what"]
    assert "--on USER@BOARD" in wrong["fix"]
    assert not folder.with_name("bundle.engine").exists()


class _RtxRunner:
    """Stands in for a GPU that runs TensorRT-RTX engines: keeps which, and runs their ONNX."""

    loaded: ClassVar[list[Path]] = []

    def __init__(self, engine: Path, *, runtime: str, builder: EngineBuilder) -> None:
        assert runtime == builder.runtime == "tensorrt-rtx"
        self.loaded.append(engine)
        bundle = engine.parent.with_name("bundle")
        self._onnx = OrtRunner(bundle / "model.fp16.onnx")
        self.run, self.describe = self._onnx.run, self._onnx.describe


@pytest.mark.skipif(
    builder.installed("tensorrt-rtx") is None, reason="tensorrt-rtx is not installed (extra rtx)"
)
def test_rtx_takes_the_bundles_engine_or_builds_for_the_gpu_here(
    bundle: BundleFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle("a10")
    _RtxRunner.loaded.clear()
    monkeypatch.setattr(runners, "TensorrtRunner", _RtxRunner)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Stand-in GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    told = call("bench", folder, "--precision", "fp16")
    assert [(one["runner"], one["deployed"]) for one in told["models"]] == [("tensorrt-rtx", True)]
    assert _RtxRunner.loaded == [folder / "model.fp16.engine"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    told = call("bench", folder, "--precision", "fp16", "--runner", "tensorrt-rtx")
    assert [one["marks"] for one in told["models"]] == [["elsewhere"]]
    built = _RtxRunner.loaded[-1]
    assert built.parent == folder.with_name("bundle.engine")
    assert (read_header(built).sm, read_header(built).runtime) == (89, "tensorrt-rtx")
    load_bundle(folder)
