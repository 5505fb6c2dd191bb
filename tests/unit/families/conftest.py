"""Tiny supernets of every family, with the independent references beside them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from references import masked_resnet, masked_vit, timm_resnet, timm_vit
from references_convolutional import masked_convnext, masked_vgg

from elastic_export.config.base import Schema
from elastic_export.elastic import Supernet
from elastic_export.families import get_family
from elastic_export.families.convnext import ConvNextConfig, ConvNextStage
from elastic_export.families.resnet import ResNetConfig, Stage
from elastic_export.families.vgg import VggConfig
from elastic_export.families.vit import VitConfig
from elastic_export.space import Spec


@dataclass
class Case:
    """A supernet with random values everywhere, and how to mask timm's network to a spec."""

    supernet: Supernet
    reference: Callable[[Spec], nn.Module]
    images: Tensor


_TINY = {"image_size": 16, "patch_size": 4, "num_classes": 5, "heads": (1, 2, 4)}
CONFIGS: dict[str, Schema] = {
    "vit": VitConfig(**_TINY, width=(8, 16, 32), depth=(1, 2, 3), mlp_ratio=(1.0, 2.5, 4.0)),
    "vit-avg": VitConfig(
        **_TINY,
        width=(16, 32),
        depth=(2, 3),
        mlp_ratio=(2.0, 3.0),
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        layer_scale=True,
        qkv_bias=False,
    ),
    "resnet-bottleneck": ResNetConfig(
        image_size=32,
        num_classes=5,
        stem=(24, 64),
        stages=(
            Stage(depth=(1, 2), width=(16, 32), expand=(0.125, 0.25)),
            Stage(depth=(1, 2, 3), width=(32, 48, 64), expand=(0.125, 0.25)),
            Stage(depth=(1,), width=(16, 32), expand=(0.25,)),
            Stage(depth=(1, 2), width=(32,), expand=(0.125, 0.25)),
        ),
    ),
    "resnet-basic-deep": ResNetConfig(
        image_size=32,
        num_classes=5,
        stem=(8, 16),
        stem_type="deep",
        avg_down=True,
        align=2,
        stages=(
            Stage(block="basic", depth=(1, 2), width=(8, 16), expand=(0.5, 1.0)),
            Stage(block="bottleneck", depth=(1, 2), width=(16, 32), expand=(0.125, 0.25)),
            Stage(block="basic", depth=(1,), width=(8, 16), expand=(1.0,)),
            Stage(block="basic", depth=(1, 2), width=(16,), expand=(0.5, 1.0)),
        ),
    ),
}


CONFIGS |= {
    "vgg": VggConfig(
        image_size=28,
        num_classes=5,
        cfg=((4, 8), "M", (8, 12), (6, 16), "M"),
        fc=((8, 24), (10,)),
    ),
    "vgg-norm": VggConfig(
        image_size=32,
        num_classes=5,
        cfg=((4, 8), (8,), "M", (8, 16), "M"),
        norm=True,
        conv_bias=False,
        pool=2,
        fc=((8, 16),),
    ),
    "convnext": ConvNextConfig(
        image_size=60,
        num_classes=5,
        stages=(
            ConvNextStage(depth=(1, 2), width=(8, 16), mlp_ratio=(1.5, 4.0)),
            ConvNextStage(depth=(1, 2, 3), width=(12, 24), mlp_ratio=(2.0, 4.0)),
            ConvNextStage(depth=(1,), width=(8,)),
            ConvNextStage(depth=(1, 2), width=(8, 12), mlp_ratio=(1.0, 2.0)),
        ),
    ),
    "convnext-v2": ConvNextConfig(
        image_size=32,
        num_classes=5,
        layer_scale=False,
        grn=True,
        kernel_size=5,
        head_norm_eps=1e-12,
        stages=(
            ConvNextStage(depth=(1, 2), width=(8, 16), mlp_ratio=(2.0, 4.0)),
            ConvNextStage(depth=(1,), width=(16,), mlp_ratio=(4.0,)),
            ConvNextStage(depth=(1, 2), width=(8, 24), mlp_ratio=(1.0, 3.0)),
            ConvNextStage(depth=(1,), width=(8,), mlp_ratio=(1.0, 3.0)),
        ),
    ),
}
_MASKED: dict[type, Callable[..., nn.Module]] = {
    VitConfig: masked_vit,
    ResNetConfig: masked_resnet,
    VggConfig: masked_vgg,
    ConvNextConfig: masked_convnext,
}


def make_case(name: str, dtype: torch.dtype = torch.float32) -> Case:
    config = CONFIGS[name]
    family = get_family(name.split("-")[0])
    supernet = Supernet.create(family, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, tensor in supernet.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    supernet.to("cpu", dtype)
    state = {k: v.clone() for k, v in supernet.state_dict().items()}
    mask = _MASKED[type(config)]
    images = torch.randn(3, *family.input_shape(config), generator=generator).to(dtype)
    return Case(
        supernet,
        lambda spec: mask(config, state, spec).to(dtype).eval(),
        images,  # type: ignore[arg-type]
    )


@pytest.fixture(params=sorted(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str) -> Case:
    return make_case(name)


@pytest.fixture
def exact(name: str) -> Case:
    return make_case(name, torch.float64)


__all__ = ["CONFIGS", "Case", "make_case", "timm_resnet", "timm_vit"]
