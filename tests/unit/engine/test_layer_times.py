"""Times per layer from real profiles of ONNX Runtime, FP32 and INT8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.data.splits import ArraySplit
from elastic_export.engine.layer_times import layer_times, saved_ms
from elastic_export.errors import UserError
from elastic_export.export import emit, export_fp32
from elastic_export.quantize.calibrate import calibrate

torch.set_num_threads(1)


class Residual(nn.Module):
    """A convolutional network as folded ones are: Conv, Conv + ReLU, Conv + Add + ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 64, 1, stride=2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.conv2(self.conv1(x).relu()) + x).relu()
        return self.fc(self.down(x).mean((2, 3)))


@dataclass
class Files:
    names: list[str]
    fp32: Path
    int8: Path


def _files(module: nn.Module, folder: Path) -> Files:
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    split = ArraySplit("calibration", x, torch.arange(8) % 10, 10)
    record = calibrate(module, split, CalibrationRecipe(name="test", images=8, batch_size=8))
    exported = export_fp32(module, x[:1], folder / "fp32.onnx")
    emit("ort-cpu", exported.path, exported.table, record, folder / "int8.onnx")
    return Files(record.modules(), exported.path, folder / "int8.onnx")


NETWORKS = {
    "vit": lambda: timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10
    ),
    "swin": lambda: timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=32, depths=(2, 1), num_heads=(2, 4)
    ),
    "residual": Residual,
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.manual_seed(0)
    return _files(NETWORKS[request.param]().eval(), tmp_path_factory.mktemp(request.param))


def test_every_layer_is_found_in_both_forms(files: Files) -> None:
    """Nothing with a weight is lost, whatever ONNX Runtime fused and renamed."""
    saved, times = saved_ms(files.fp32, files.int8, files.names, runs=5)
    assert set(saved) == set(files.names)
    for found in times.values():
        assert found.lost == ()
        assert set(found.ms) == set(files.names)
        assert all(ms > 0 for ms in found.ms.values())
        assert 0 < found.unattributed < 1
        # Medians do not add up exactly, but they must tell of the same time.
        attributed = sum(found.ms.values()) / found.total_ms
        assert attributed + found.unattributed == pytest.approx(1, abs=0.3)
    for name, ms in saved.items():
        assert ms == times["fp32"].ms[name] - times["int8"].ms[name]


def _products(tmp_path: Path, names: list[str]) -> Path:
    """Three products of very different size; only the names tell them apart."""
    sizes = {"small": 64, "large": 1024, "foreign": 512}
    nodes, weights, outputs = [], [], []
    for name, size in zip(names, sizes.values(), strict=True):
        weight = np.zeros((1024, size), np.float32)
        weights.append(onnx.numpy_helper.from_array(weight, f"{name}.weight"))
        weights.append(onnx.numpy_helper.from_array(np.zeros(size, np.float32), f"{name}.bias"))
        inputs = ["x", f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [f"y{size}"], name=name))
        outputs.append(helper.make_tensor_value_info(f"y{size}", TensorProto.FLOAT, [32, size]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, 1024])
    graph = helper.make_graph(nodes, "products", [x], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "products.onnx"
    onnx.save(model, path)
    return path


def test_time_goes_to_the_layer_that_takes_it(tmp_path: Path) -> None:
    path = _products(tmp_path, ["net.small", "net.large", "foreign"])
    found = layer_times(path, ["net.small", "net.large"])
    assert found.ms["net.large"] > 3 * found.ms["net.small"]
    assert found.lost == ("foreign",)
    # 512 of 1600 columns belong to nobody.
    assert found.unattributed == pytest.approx(512 / 1600, abs=0.15)


def test_a_name_that_only_begins_alike_is_another_layer(tmp_path: Path) -> None:
    path = _products(tmp_path, ["blocks.1", "blocks.10", "blocks.1.q"])
    found = layer_times(path, ["blocks.1"], runs=5)
    assert found.lost == ("blocks.10",)
    assert list(found.ms) == ["blocks.1"]


def test_a_file_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot load .*broken\.onnx"):
        layer_times(path, [])
