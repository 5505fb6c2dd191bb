"""torch and ONNX Runtime on a real GPU; needs one, so CI leaves these out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from elastic_export.engine.runners import OrtRunner, TensorrtOptions, TorchRunner
from elastic_export.export import export_fp32

PROVIDERS = onnxruntime.get_available_providers()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
needs_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" not in PROVIDERS, reason="this ONNX Runtime has no CUDA provider"
)
needs_tensorrt = pytest.mark.skipif(
    "TensorrtExecutionProvider" not in PROVIDERS,
    reason="this ONNX Runtime has no TensorRT provider",
)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10)
    ).eval()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, 32, 32), np.float32)


@pytest.fixture
def file(net: nn.Module, tmp_path: Path) -> Path:
    return export_fp32(net, torch.zeros(1, 3, 32, 32), tmp_path / "net.onnx").path


def error(got: np.ndarray, net: nn.Module, x: np.ndarray) -> float:
    wanted = TorchRunner(net).run(x)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("precision", ["fp32", "autocast", "half"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_torch(
    net: nn.Module,
    x: np.ndarray,
    precision: Literal["fp32", "autocast", "half"],
    channels_last: bool,
) -> None:
    runner = TorchRunner(net, device="cuda", precision=precision, channels_last=channels_last)
    assert error(runner.run(x), net, x) < 1e-2
    assert next(net.parameters()).device.type == "cpu"
    assert runner.describe()["device"] == torch.cuda.get_device_name()


@needs_cuda
def test_onnx_runtime_with_cuda(file: Path, net: nn.Module, x: np.ndarray) -> None:
    runner = OrtRunner(file, provider="cuda")
    assert error(runner.run(x), net, x) < 1e-2
    assert runner.describe()["providers"][0] == "CUDAExecutionProvider"


@needs_tensorrt
def test_onnx_runtime_with_tensorrt(
    file: Path, net: nn.Module, x: np.ndarray, tmp_path: Path
) -> None:
    options = TensorrtOptions(cache=tmp_path / "cache", fp16=True, sparse=True)
    runner = OrtRunner(file, provider="tensorrt", options=options)
    assert error(runner.run(x), net, x) < 2e-2
    assert runner.describe()["providers"][0] == "TensorrtExecutionProvider"
    assert list((tmp_path / "cache").glob("*.engine"))


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0),
    reason="sparse tensor cores come with compute capability 8.0",
)
def test_torch_sparse() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10)).eval()
    with torch.no_grad():
        net[0].weight.reshape(-1, 4)[:, [0, 2]] = 0
    x = np.random.default_rng(0).random((8, 256), np.float32)
    runner = TorchRunner(net, device="cuda", precision="half", sparse=True)
    assert runner.describe()["sparse_layers"] == 1
    assert error(runner.run(x), net, x) < 2e-2
