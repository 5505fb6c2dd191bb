"""timm's networks: by name, by architecture beside a file, and files under its older names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vgg import VGG
from timm.models.vision_transformer import VisionTransformer
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from plain_networks import same_in_onnx, same_logits, shaken

from elastic_export.checkpoints import import_supernet
from elastic_export.checkpoints.plain.timm_models import is_model_name, model_identity
from elastic_export.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.pth"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("test_vit", "vit"),
        ("deit_tiny_distilled_patch16_224", "vit"),
        ("test_resnet", "resnet"),
        ("convnextv2_atto", "convnext"),
        ("swin_tiny_patch4_window7_224", "swin"),
    ],
)
def test_a_network_by_name(name: str, family: str) -> None:
    found = import_supernet(Path(f"timm:{name}"), config={})
    assert (found.supernet.family.name, found.format) == (family, "timm-model")
    assert "weights are random" in found.notes[0]
    torch.manual_seed(0)  # the weights are a function of the name alone
    net = timm.create_model(name).eval()
    x = torch.randn(1, *found.supernet.family.input_shape(found.supernet.config))
    with torch.no_grad():
        wanted, got = net(x), found.supernet.eval()(found.supernet.space.max(), x)
    assert float((got - wanted).abs().max() / wanted.abs().max()) <= 1e-5


def test_settings_of_a_network_by_name() -> None:
    config = {"num_classes": 7, "image_size": 96, "in_chans": 1}
    found = import_supernet(Path("timm:test_vit"), config=config).supernet.config
    assert (found.num_classes, found.image_size, found.in_chans) == (7, 96, 1)
    found = import_supernet(Path("timm:test_resnet"), config={"image_size": 64}).supernet.config
    assert found.image_size == 64
    with pytest.raises(UserError, match=r"heads is given as \[1\]"):
        import_supernet(Path("timm:test_vit"), config={"heads": [1]})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test_vitt", r'no network "test_vitt". Did you mean "test_vit'),
        ("", 'no network ""'),
        ("test_efficientnet", r"is a EfficientNet, which no family builds. .*ConvNeXt, ResNet"),
        ("test_convnext2", "computes something else than family convnext"),  # its GELU is tanh's
        ("test_vit4", "has parts that no family builds"),
        ("test_vit3", "pools by map"),
    ],
)
def test_networks_that_are_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        import_supernet(Path(f"timm:{name}"), config={})


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> nn.Module:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=r"not fetch the weights of test_vit: no route"):
        import_supernet(Path("timm:test_vit?pretrained"), config={})


def test_what_a_name_is(path: Path) -> None:
    assert is_model_name(Path("timm:test_vit"))
    assert not is_model_name(Path("models/timm:test_vit"))
    assert timm.__version__ in model_identity(Path("timm:test_vit"))
    torch.save(timm.create_model("test_vit").state_dict(), path)
    with pytest.raises(UserError, match="is a file, not timm:NAME"):
        import_supernet(path, format="timm-model", config={})


def test_an_architecture_tells_the_heads(path: Path) -> None:
    net = shaken(timm.create_model("test_vit", num_classes=7, img_size=96))
    torch.save(net.state_dict(), path)
    found = same_logits(net, path, {"arch": "test_vit"})
    assert found.notes == ("What the file does not hold is taken from timm's test_vit.",)
    for arch, said in (
        ("test_vit2", r"not a test_vit2: .* missing"),
        ("test_resnet", "holds a vit, but timm's test_resnet is a resnet"),
        ("test_vit9", "has no network"),
    ):
        with pytest.raises(UserError, match=said):
            import_supernet(path, config={"arch": arch})
    with pytest.raises(UserError, match="heads is given as 4"):
        import_supernet(path, config={"arch": "test_vit", "heads": 4})


def test_a_folder_as_timm_saves_it_for_the_hub(tmp_path: Path) -> None:
    net = shaken(timm.create_model("test_resnet", num_classes=7))
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    told = {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 96, 96]}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    found = same_logits(net, tmp_path, {})
    assert found.format == "timm"
    assert found.supernet.config.image_size == 96


def _swin() -> nn.Module:
    return SwinTransformer(
        img_size=32,
        patch_size=4,
        num_classes=5,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(1, 2),
        window_size=4,
    )


def test_swin_under_timms_and_microsofts_names(path: Path) -> None:
    net = shaken(_swin())
    state = net.state_dict()
    torch.save(state, path)
    same_logits(net, path, {"image_size": 32})
    with pytest.raises(UserError, match="image size is not stored"):
        import_supernet(path, config={})
    older = {
        key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): value
        for key, value in state.items()
    }
    for s, block in enumerate((net.layers[0].blocks, net.layers[1].blocks)):
        for b, part in enumerate(block):
            name = f"layers.{s}.blocks.{b}"
            older[f"{name}.attn.relative_position_index"] = part.attn.relative_position_index
            if part.attn_mask is not None:
                older[f"{name}.attn_mask"] = part.attn_mask
    torch.save({"model": older}, path)
    found = same_logits(net, path, {})
    assert set(found.ignored.values()) == {"follows from the window", "follows from the sizes"}


def test_vgg_under_timms_names(path: Path) -> None:
    layers = [4, "M", 8, "M", 8, 12, "M", 16, "M", 16, 20, "M"]
    net = VGG(layers, num_classes=5, norm_layer=nn.BatchNorm2d)
    net.pre_logits.fc1, net.pre_logits.fc2 = nn.Conv2d(20, 12, 7), nn.Conv2d(12, 10, 1)
    net.head.fc = nn.Linear(10, 5)
    shaken(net)
    torch.save(net.state_dict(), path)
    found = same_logits(net, path, {"image_size": 32})
    same_in_onnx(found, path.with_suffix(".onnx"))
    with pytest.raises(UserError, match="applies its hidden layers at several places"):
        import_supernet(path, config={"image_size": 256})


def test_convnext_with_convolutions_for_linear_layers(path: Path) -> None:
    net = shaken(timm.create_model("convnext_atto", num_classes=5))
    torch.save(net.state_dict(), path)
    same_logits(net, path, {"image_size": 64})


def test_positions_without_the_class_token(path: Path) -> None:
    net = VisionTransformer(
        img_size=16,
        patch_size=4,
        num_classes=5,
        embed_dim=16,
        depth=2,
        num_heads=2,
        init_values=1e-5,
        no_embed_class=True,
        reg_tokens=2,
    )
    torch.save(shaken(net).state_dict(), path)
    same_logits(net.eval(), path, {"heads": [2]})


def test_files_from_before_batches_were_counted(path: Path) -> None:
    net = shaken(timm.create_model("test_resnet", num_classes=5))
    state = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
    torch.save(state, path)
    same_logits(net, path, {"image_size": 64})
