"""Plain checkpoints with timm's names: recognised, filled, and refused with what would help."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from elastic_export.checkpoints import import_supernet, save_supernet
from elastic_export.elastic import extract
from elastic_export.errors import UserError
from elastic_export.sparsity import pattern_mask


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "vit.pth"
    torch.save({"model": timm.create_model("test_vit").state_dict(), "epoch": 3}, path)
    return path


def test_a_plain_vit_is_recognised_and_computes_the_same(vit: Path) -> None:
    found = import_supernet(vit, config={"heads": [2]})
    assert (found.supernet.family.name, found.format) == ("vit", "timm")
    net = timm.create_model("test_vit").eval()
    net.load_state_dict(torch.load(vit, weights_only=True)["model"])
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        got = extract(found.supernet, found.supernet.space.max()).module(x)
        assert torch.allclose(got, net(x), atol=1e-5)


def test_zeros_are_measured(vit: Path) -> None:
    saved = torch.load(vit, weights_only=True)
    weight = saved["model"]["blocks.0.mlp.fc1.weight"]
    saved["model"]["blocks.0.mlp.fc1.weight"] = weight * pattern_mask(weight, "2:4")
    torch.save(saved, vit)
    found = import_supernet(vit, config={"heads": [2]})
    assert found.sparsity["blocks.0.mlp.fc1.weight"] == pytest.approx(0.5, abs=1e-3)
    assert "blocks.0.mlp.fc2.weight" not in found.sparsity


def test_another_family_is_named(vit: Path) -> None:
    with pytest.raises(UserError, match="names are those of vit"):
        import_supernet(vit, family="resnet", config={})
    with pytest.raises(UserError, match=r'Did you mean "resnet"'):
        import_supernet(vit, family="resent", config={})


def test_unknown_and_missing_keys_are_errors(vit: Path) -> None:
    saved = torch.load(vit, weights_only=True)
    saved["model"]["blocks.0.attn.gate"] = torch.zeros(3)
    torch.save(saved, vit)
    with pytest.raises(UserError, match=r"1 are unknown \(blocks\.0\.attn\.gate\)"):
        import_supernet(vit, config={"heads": [2]})
    del saved["model"]["blocks.0.attn.gate"], saved["model"]["blocks.1.norm1.bias"]
    torch.save(saved, vit)
    with pytest.raises(UserError, match=r"1 are missing \(blocks\.1\.norm1\.bias\)"):
        import_supernet(vit, config={"heads": [2]})


def test_a_file_of_no_family(tmp_path: Path) -> None:
    torch.save({"a.b": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no known family"):
        import_supernet(tmp_path / "x.pth", config={})


def test_a_native_supernet_of_another_family(vit: Path, tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    save_supernet(import_supernet(vit, config={"heads": [2]}).supernet, path)
    assert import_supernet(path, config={}).format == "native"
    with pytest.raises(UserError, match="is of family vit, not resnet"):
        import_supernet(path, family="resnet", config={})
    with pytest.raises(UserError, match="no checkpoint format"):
        import_supernet(path, format="naive", config={})
