"""torchvision's names: the logits are torchvision's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import convnext, resnet, swin_transformer, vgg, vision_transformer

sys.path.insert(0, str(Path(__file__).parent))

from plain_networks import Make, same_in_onnx, same_logits, shaken

from elastic_export.checkpoints import import_supernet
from elastic_export.errors import UserError


def _vit() -> nn.Module:
    return vision_transformer.VisionTransformer(16, 4, 2, 2, 16, 24, num_classes=5)


def _swin() -> nn.Module:
    return swin_transformer.SwinTransformer([4, 4], 8, [2, 2], [1, 2], [4, 4], num_classes=5)


def _convnext() -> nn.Module:
    block = convnext.CNBlockConfig
    return convnext.ConvNeXt([block(8, 16, 1), block(16, 24, 2), block(24, None, 1)], num_classes=5)


def _vgg(norm: bool) -> nn.Module:
    layers = [4, "M", 8, "M", 8, 12, "M", 16, "M", 16, 512, "M"]
    features = vgg.make_layers(layers, batch_norm=norm)
    with torch.device("meta"):  # its 4096 wide layers are replaced
        net = vgg.VGG(features, num_classes=5, init_weights=False)
    net.classifier[0], net.classifier[3] = nn.Linear(512 * 49, 8), nn.Linear(8, 6)
    net.classifier[6] = nn.Linear(6, 5)
    return net


def _resnet() -> nn.Module:
    return resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1], num_classes=5)


NETWORKS: dict[str, tuple[Make, dict[str, Any], str]] = {
    "vit": (_vit, {"heads": 2}, "torchvision"),
    "swin": (_swin, {"image_size": 32}, "torchvision"),
    "convnext": (_convnext, {"image_size": 32}, "torchvision"),
    "vgg": (lambda: _vgg(False), {"image_size": 32}, "torchvision"),
    "vgg-norm": (lambda: _vgg(True), {"image_size": 32}, "torchvision"),
    "resnet": (_resnet, {"image_size": 64}, "timm"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.pth"


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_logits_are_torchvisions(name: str, path: Path) -> None:
    make, config, format = NETWORKS[name]
    net = shaken(make())
    torch.save({"model": net.state_dict(), "epoch": 3}, path)
    found = same_logits(net, path, config)
    assert found.format == format
    assert same_logits(net, path, config, "torchvision").format == "torchvision"
    if name in ("convnext", "vgg-norm"):
        same_in_onnx(found, path.with_suffix(".onnx"))


def test_index_tables_are_checked_and_left_out(path: Path) -> None:
    state = _swin().state_dict()
    torch.save(state, path)
    ignored = import_supernet(path, config={"image_size": 32}).ignored
    assert len(ignored) == 4
    assert set(ignored.values()) == {"follows from the window"}
    state["features.1.0.attn.relative_position_index"] += 1
    torch.save(state, path)
    with pytest.raises(UserError, match="is not the index table of 4 x 4 windows"):
        import_supernet(path, config={"image_size": 32})


def test_maps_narrower_than_a_window_are_refused(path: Path) -> None:
    torch.save(_swin().state_dict(), path)  # torchvision pads them, other code shrinks the window
    with pytest.raises(UserError, match=r"bias_table has shape \(49, 2\)"):
        import_supernet(path, config={"image_size": 16})


def test_older_names_of_the_mlp(path: Path) -> None:
    net = shaken(_vit())
    state = {
        k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v
        for k, v in net.state_dict().items()
    }
    torch.save(state, path)
    same_logits(net, path, {"heads": [2]})


@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("vit", "heads.head.weight", r"without a classifier: heads\.head\.weight is missing"),
        ("swin", "head.weight", "without a classifier"),
        ("convnext", "classifier.2.weight", "without a classifier"),
        ("vit", "conv_proj.weight", r"patch_embed\.proj\.weight is missing"),
        ("convnext", "features.3.0.block.3.weight", r"no pointwise linear layers"),
    ],
)
def test_incomplete_files(name: str, lost: str, said: str, path: Path) -> None:
    make, config, _ = NETWORKS[name]
    state = make().state_dict()
    del state[lost]
    torch.save(state, path)
    with pytest.raises(UserError, match=said):
        import_supernet(path, config=config)


def test_what_is_not_in_the_file_must_be_given(path: Path) -> None:
    torch.save(_vit().state_dict(), path)
    with pytest.raises(UserError, match="number of heads is not stored"):
        import_supernet(path, config={})
    with pytest.raises(UserError, match="heads is 3, but the queries are 16 wide"):
        import_supernet(path, config={"heads": [3]})
    small = _vgg(norm=False)
    small.features = vgg.make_layers([4, "M", 512, "M"])
    small.classifier = nn.Sequential(nn.Linear(512 * 49, 5))
    torch.save(small.state_dict(), path)
    with pytest.raises(UserError, match=r"2 poolings if .* such as \[4, M, 512, M\]"):
        import_supernet(path, config={})
    found = import_supernet(path, config={"cfg": [4, "M", 512, "M"], "image_size": 28})
    assert found.supernet.family.name == "vgg"
    with pytest.raises(UserError, match="cannot be averaged evenly to pool 7"):
        import_supernet(path, config={"cfg": [4, "M", 512, "M"], "image_size": 32})


def test_unknown_keys_are_errors(path: Path) -> None:
    torch.save({**_vit().state_dict(), "encoder.gate": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"tensors this reader does not know: encoder\.gate"):
        import_supernet(path, config={"heads": [2]})
