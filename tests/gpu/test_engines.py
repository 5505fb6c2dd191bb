"""Engines built and run by the real TensorRT; needs it and a GPU, so CI leaves these out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from elastic_export.engine.builder import BuildOptions, EngineBuilder, device_sm, installed
from elastic_export.engine.runners import TensorrtRunner
from elastic_export.engine.sidecar import read_header
from elastic_export.errors import CheckFailed
from elastic_export.export import emit_fp16, export_fp32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
needs_tensorrt = pytest.mark.skipif(
    installed("tensorrt") is None, reason="tensorrt is not installed (extra trt)"
)
needs_rtx = pytest.mark.skipif(
    installed("tensorrt-rtx") is None, reason="tensorrt-rtx is not installed (extra rtx)"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small convolutional network, in FP32 and in FP16."""
    folder = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    fp32 = export_fp32(net, torch.zeros(1, 3, 32, 32), folder / "fp32.onnx").path
    emit_fp16(fp32, folder / "fp16.onnx")
    np.save(folder / "x.npy", x := np.random.default_rng(0).random((1, 3, 32, 32), np.float32))
    with torch.no_grad():
        np.save(folder / "y.npy", net(torch.from_numpy(x)).numpy())
    return {name: folder / f"{name}" for name in ("fp32.onnx", "fp16.onnx", "x.npy", "y.npy")}


def check(runner: TensorrtRunner, files: dict[str, Path], tolerance: float) -> None:
    x, wanted = np.load(files["x.npy"]), np.load(files["y.npy"])
    got = runner.run(x)
    assert np.abs(got - wanted).max() / np.abs(wanted).max() < tolerance


@needs_tensorrt
@pytest.mark.parametrize("form", ["fp32.onnx", "fp16.onnx"])
def test_strong_engine_runs(files: dict[str, Path], form: str, tmp_path: Path) -> None:
    builder, out = EngineBuilder("tensorrt"), tmp_path / "net.engine"
    if "strong" not in builder.release.typings:
        pytest.skip(f"TensorRT {builder.version} has no strongly typed networks")
    options = BuildOptions(sparse=True, workspace_mib=256, timing_cache=tmp_path / "timing.cache")
    report = builder.build(files[form], out, options)
    assert (report.status, report.sm) == ("built", device_sm())
    assert report.layers
    assert read_header(out).layers is not None
    assert (tmp_path / "timing.cache").stat().st_size > 0
    check(TensorrtRunner(out), files, 2e-2)
    again = builder.build(files[form], out, options)
    assert again.layers == report.layers


@needs_tensorrt
def test_weak_engine_runs(files: dict[str, Path], tmp_path: Path) -> None:
    builder, out = EngineBuilder("tensorrt"), tmp_path / "net.engine"
    if "weak" not in builder.release.typings:
        pytest.skip(f"TensorRT {builder.version} has no weakly typed networks")
    builder.build(files["fp32.onnx"], out, BuildOptions("weak", fp16=True))
    check(TensorrtRunner(out), files, 2e-2)


@needs_tensorrt
def test_a_damaged_engine_is_not_loaded(files: dict[str, Path], tmp_path: Path) -> None:
    builder, out = EngineBuilder("tensorrt"), tmp_path / "net.engine"
    typing = builder.release.typings[0]
    builder.build(files["fp32.onnx"], out, BuildOptions(typing))
    out.write_bytes(out.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckFailed, match="was changed"):
        TensorrtRunner(out)


@needs_rtx
def test_rtx_engine_runs(files: dict[str, Path], tmp_path: Path) -> None:
    builder, out = EngineBuilder("tensorrt-rtx"), tmp_path / "net.engine"
    sm = device_sm()
    if sm not in builder.supported_sms():
        pytest.skip(f"TensorRT-RTX {builder.version} builds nothing for sm_{sm}")
    report = builder.build(files["fp16.onnx"], out, BuildOptions(sm=sm, sparse=True))
    assert report.status == "accepted"
    check(TensorrtRunner(out, runtime="tensorrt-rtx"), files, 2e-2)
