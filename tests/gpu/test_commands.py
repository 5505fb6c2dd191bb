"""``bench`` and ``compile`` on a real GPU; needs one, so CI leaves these out."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from elastic_export import resources
from elastic_export.checkpoints import load_descendant, save_descendant
from elastic_export.config.targets import load_target
from elastic_export.engine.builder import EngineBuilder, device_sm, installed
from tests.unit.cli.small import call, make_small

PROVIDERS = onnxruntime.get_available_providers()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
needs_tensorrt = pytest.mark.skipif(
    installed("tensorrt") is None, reason="tensorrt is not installed (extra trt)"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A descendant wide enough for torch's 2:4 kernels, its linear weights 2:4."""
    path = make_small(tmp_path_factory.mktemp("small"), width=[64], heads=[2], head_dim=32)
    one = load_descendant(path)
    with torch.no_grad():
        for layer in one.module.modules():
            if isinstance(layer, nn.Linear) and layer.in_features % 4 == 0:
                layer.weight.reshape(-1, 4)[:, [0, 2]] = 0
    save_descendant(one, path)
    return path


def export(small: Path, target: str, folder: Path) -> Path:
    told = call("export", small, "--target", target, "--data", "digits", "--out", folder)
    return Path(told["folder"])


def target_here(runtime: str, major: str) -> str:
    """Name a shipped target that has this GPU's compute capability and this runtime."""
    for name in resources.names("targets"):
        profile = load_target(name).target
        for software in profile.software if profile.sm == device_sm() else ():
            if software.runtime == runtime and software.runtime_version.startswith(f"{major}."):
                return f"{name}@{software.name}"
    pytest.skip(f"no shipped target is for sm_{device_sm()} with {runtime} {major}")


def test_torch_with_cuda(small: Path) -> None:
    told = call("bench", small, "--runner", "torch", "--runner", "torch-cuda")
    kinds = {(one["runner"], one["precision"]) for one in told["models"]}
    wanted = {("torch-cuda", name) for name in ("fp32", "autocast", "half")}
    if (device_sm() or 0) >= 80:
        wanted.add(("torch-cuda", "half 2:4"))
    assert kinds == {("torch", "fp32"), *wanted}
    assert told["machine"]["gpu"]["sm"] == device_sm()
    for one in told["models"]:
        assert one["latency"]["median_ms"] > 0
        assert (one["runs"]["sparse_layers"] > 0) == (one["precision"] == "half 2:4")


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in PROVIDERS, reason="this ONNX Runtime has no CUDA provider"
)
def test_onnx_runtime_with_cuda(small: Path, tmp_path: Path) -> None:
    bundle = export(small, "a10@trt10.16", tmp_path)
    told = call("bench", bundle, "--runner", "onnxruntime-cuda", "--precision", "fp16")
    (one,) = told["models"]
    assert one["logits"]["ok"]
    assert one["runs"]["providers"][0] == "CUDAExecutionProvider"


@needs_tensorrt
def test_tensorrt_on_a_bundle_for_this_gpu(small: Path, tmp_path: Path) -> None:
    major = EngineBuilder("tensorrt").version.partition(".")[0]
    bundle = export(small, target_here("tensorrt", major), tmp_path)
    told = call("bench", bundle)
    assert {one["runner"] for one in told["models"]} == {"tensorrt"}
    assert all(one["logits"]["ok"] and one["deployed"] for one in told["models"])
    assert all(one["engine"]["layers"] for one in told["models"])
    assert told["chosen"]
    again = call("bench", bundle)
    assert all(one["engine"]["reused"] for one in again["models"])


@needs_tensorrt
def test_compile_with_tensorrt(small: Path, tmp_path: Path) -> None:
    bundle = export(small, "a10@trt10.16", tmp_path)
    builder = EngineBuilder("tensorrt")
    if "strong" not in builder.release.typings:
        pytest.skip(f"TensorRT {builder.version} has no strongly typed networks")
    told = call("compile", bundle / "model.fp16.onnx", "--runtime", "tensorrt", "--level", "1")
    (engine,) = told["engines"]
    assert (engine["status"], engine["sm"]) == ("built", device_sm())
    assert engine["layers"] > 0
    assert Path(engine["file"]).parent == bundle.with_name(f"{bundle.name}.engine")
    assert call("compile", bundle / "model.fp16.onnx", "--runtime", "tensorrt", "--level", "1")[
        "engines"
    ][0]["reused"]


@pytest.mark.skipif(
    installed("tensorrt-rtx") is None, reason="tensorrt-rtx is not installed (extra rtx)"
)
def test_tensorrt_rtx_runs_the_engine_of_the_bundle(small: Path, tmp_path: Path) -> None:
    if device_sm() not in EngineBuilder("tensorrt-rtx").supported_sms():
        pytest.skip(f"TensorRT-RTX builds nothing for sm_{device_sm()}")
    major = EngineBuilder("tensorrt-rtx").version.partition(".")[0]
    bundle = export(small, target_here("tensorrt-rtx", major), tmp_path)
    told = call("bench", bundle)
    assert {one["runner"] for one in told["models"]} == {"tensorrt-rtx"}
    assert all(one["logits"]["ok"] and one["deployed"] for one in told["models"])
    assert {Path(one["engine"]["file"]).parent for one in told["models"]} == {bundle.resolve()}
