"""Lowered graphs are valid, compute the same, and hold nothing the old opset does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

from elastic_export.errors import CheckFailed
from elastic_export.export.files import load_model, save_model
from elastic_export.export.fp32 import export_fp32
from elastic_export.export.lowering import lower
from elastic_export.export.verify import run_onnx


class Mixed(nn.Module):
    """Operators that changed between opsets 13 and 20, in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm((8, 12, 12))
        self.tanh = nn.GELU(approximate="tanh")
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.conv(x))
        x = self.tanh(nn.functional.pad(self.norm(x), (1, 0, 2, 1)))
        low, high = x.split([3, 5], dim=1)
        x = torch.cat([high.amax(dim=(2, 3), keepdim=True) + high, low.abs()], dim=1)
        return self.head(nn.functional.gelu(x.mean(dim=(2, 3))))


NETWORKS = ["mixed", "test_vit", "test_resnet", "test_convnext"]
FILES = [*((name, 18) for name in NETWORKS), ("mixed", 20)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    made = {}
    for name, opset in FILES:
        torch.manual_seed(0)
        net = Mixed() if name == "mixed" else timm.create_model(name)
        x = torch.randn(1, 3, 12, 12) if name == "mixed" else torch.randn(1, 3, 160, 160)
        path = tmp_path_factory.mktemp(name) / f"{opset}.onnx"
        made[name, opset] = export_fp32(net, x, path, opset=opset).path
    return made


@pytest.mark.parametrize(("name", "start"), FILES)
@pytest.mark.parametrize("opset", [13, 17])
def test_the_function_stays(
    exported: dict[tuple[str, int], Path], name: str, start: int, opset: int, tmp_path: Path
) -> None:
    before = exported[name, start]
    model = load_model(before)
    lower(model, opset)
    path = tmp_path / "low.onnx"
    save_model(model, path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == opset
    later = {"Gelu", "HardSwish", "LayerNormalization"} if opset < 14 else {"Gelu"}
    assert not later & {node.op_type for node in proto.graph.node}
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    wanted, found = run_onnx(before, x), run_onnx(path, x)
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()


def test_an_operator_the_runtime_lacks_is_decomposed_at_any_opset(
    exported: dict[tuple[str, int], Path],
) -> None:
    model = load_model(exported["test_vit", 18])
    notes = lower(model, 17, without={"LayerNormalization"})
    assert "LayerNormalization" not in {node.op_type for node in model.graph}
    assert "LayerNormalization were decomposed" in notes[0]


def test_what_has_no_old_form_is_named(tmp_path: Path) -> None:
    class Warp(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.grid_sample(x, x[:, :2].movedim(1, -1), align_corners=False)

    path = export_fp32(Warp(), torch.rand(1, 3, 8, 8), tmp_path / "warp.onnx", opset=18).path
    with pytest.raises(CheckFailed, match="is a GridSample, which opset 13 does not have"):
        lower(load_model(path), 13)
