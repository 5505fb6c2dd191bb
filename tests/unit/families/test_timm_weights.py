"""Plain modules take timm's weights under timm's names and compute timm's logits."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from elastic_export.elastic import Supernet, extract
from elastic_export.errors import UserError
from elastic_export.families import get_family

MODELS = [
    ("test_vit", "vit", {"heads": 2}, 160),
    ("test_vit2", "vit", {"heads": [2]}, 160),
    ("deit_tiny_patch16_224", "vit", {"heads": 3}, 224),
    ("deit_tiny_distilled_patch16_224", "vit", {"head_dim": 64}, 224),
    ("test_resnet", "resnet", {"image_size": 160}, 160),
    ("resnet18", "resnet", {"image_size": 224}, 224),
    ("resnet50", "resnet", {"image_size": 224}, 224),
    ("resnet50d", "resnet", {"image_size": 224}, 224),
]


def _normalised(hints: dict[str, Any]) -> dict[str, Any]:
    heads = hints.get("heads")
    return {**hints, "heads": [heads]} if isinstance(heads, int) else hints


@pytest.mark.parametrize(("model", "family", "hints", "size"), MODELS)
def test_logits_equal_timm(model: str, family: str, hints: dict[str, Any], size: int) -> None:
    torch.manual_seed(0)
    net = timm.create_model(model).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    kind = get_family(family)
    state = net.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = kind.recognise(shapes, _normalised(hints))
    supernet = Supernet.create(kind, config)
    supernet.load_state_dict(state)
    module = extract(supernet, supernet.space.max()).module
    assert module.state_dict().keys() == state.keys()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        wanted = net(x)
        assert float((module(x) - wanted).abs().max() / wanted.abs().max()) <= 1e-5


def test_a_vit_without_its_head_count_is_refused() -> None:
    state = timm.create_model("test_vit").state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    with pytest.raises(UserError, match="number of heads is not stored"):
        get_family("vit").recognise(shapes, {})


def test_another_familys_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"not a ResNet .*bn1\.weight is missing"):
        get_family("resnet").recognise({"pos_embed": (1, 5, 8)}, {})
    with pytest.raises(UserError, match="no family"):
        get_family("vti")


def test_grouped_convolutions_are_refused() -> None:
    state = timm.create_model("resnext50_32x4d").state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    with pytest.raises(UserError, match="grouped convolutions"):
        get_family("resnet").recognise(shapes, {"image_size": 224})
