"""Tiny real networks, exported once per session, with records taken by plain forward hooks."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from elastic_export.config.base import Schema
from elastic_export.elastic import Supernet, extract
from elastic_export.elastic.fold import fold_batchnorm as fold_batchnorm_pairs
from elastic_export.export import Exported, emit, export_fp32
from elastic_export.families import get_family
from elastic_export.families.elasticvit import ConvStage, ElasticVitConfig, TokenStage
from elastic_export.families.swin import SwinConfig, SwinStage
from elastic_export.families.vit import VitConfig
from elastic_export.quantize.calibrate import model_digest
from elastic_export.quantize.policy import attention_verdict, judge, quantizable_layers
from elastic_export.quantize.products import ProductHooks
from elastic_export.quantize.record import QuantizationRecord, Site
from elastic_export.sparsity.patterns import pattern_mask

torch.set_num_threads(1)


@dataclass
class Case:
    """One exported network with everything a flavour is written from and compared with."""

    module: nn.Module
    exported: Exported
    record: QuantizationRecord
    images: Tensor
    logits: np.ndarray
    patterns: dict[str, str]


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        parts = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, c))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class TinyViT(nn.Module):
    """A plain vision transformer: 3x32x32 images, 17 tokens of 32 values, two blocks."""

    def __init__(self, dim: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, dim))
        self.blocks = nn.Sequential(*[Block(dim, 2) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Give every BatchNorm real numbers and fold it into the convolution before it."""
    parts = dict(module.named_modules())
    for part in parts.values():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
            nn.init.normal_(part.running_mean, std=0.2)
    for node in fx.symbolic_trace(module).graph.nodes:
        if node.op != "call_module" or not isinstance(parts[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0].target
        module.set_submodule(before, fuse_conv_bn_eval(parts[before], parts[node.target]))
        module.set_submodule(node.target, nn.Identity())
    return module


def take_record(module: nn.Module, images: Tensor) -> QuantizationRecord:
    """Calibrate by minimum and maximum of one batch."""
    layers = quantizable_layers(module)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        layer.register_forward_hook(
            # Cloned, because what follows may work in place.
            lambda _m, args, out, name=name: seen.update({name: (args[0].clone(), out.clone())})
        )
        for name, layer in layers.items()
    ]
    products = ProductHooks(module, layers, histogram=False)
    with torch.no_grad(), products:
        module(images)
    for hook in hooks:
        hook.remove()
    ranges: dict[tuple[str, str], tuple[float, float]] = {}
    for name, layer in layers.items():
        for role, tensor in zip(
            ("input", "weight", "output"),
            (seen[name][0], layer.weight.detach(), seen[name][1]),
            strict=True,
        ):
            ranges[name, role] = (float(tensor.min()), float(tensor.max()))
    ranges |= {key: found.bounds for key, found in products.ranges.items()}
    verdicts = {n: judge(n, layer, (), products.positions[n]) for n, layer in layers.items()}
    sites: dict[tuple[str, str], Site] = {}
    for (name, role), (low, high) in ranges.items():
        verdict = verdicts.get(name, attention_verdict())
        weight = layers[name].weight.detach() if role == "weight" else None
        amax = max(-low, high) if weight is None else weight.abs().flatten(1).amax(1).numpy()
        sites[name, role] = Site(
            module=name,
            role=role,
            min=low,
            max=high,
            amax=np.asarray(amax, np.float32),
            axis=None if weight is None else 0,
            policy="float" if verdict.reason else "int8",
            reason=verdict.reason,
            rule=verdict.rule,
        )
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return QuantizationRecord(sites, "max", len(images), digest, model_digest(module))


def prune(module: nn.Module) -> dict[str, str]:
    """Make every quantizable weight 2:4 and return what was made so."""
    patterns = {}
    with torch.no_grad():
        for name, layer in quantizable_layers(module).items():
            if not judge(name, layer).reason:
                layer.weight *= pattern_mask(layer.weight, "2:4")
                patterns[f"{name}.weight"] = "2:4"
    return patterns


def make_case(module: nn.Module, images: Tensor, path: Path, **options: object) -> Case:
    module = module.eval()
    patterns = prune(module)
    exported = export_fp32(module, images[:1], path, **options)
    record = take_record(module, images)
    with torch.no_grad():
        logits = module(images).numpy()
    return Case(module, exported, record, images, logits, patterns)


@pytest.fixture(scope="session", name="take_record")
def take_record_fixture() -> Callable[[nn.Module, Tensor], QuantizationRecord]:
    """The function of this file that calibrates by minimum and maximum."""
    return take_record


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="session")
def vit(folder: Path) -> Case:
    """timm's test_vit, 2:4."""
    torch.manual_seed(0)
    module = timm.create_model("test_vit", pretrained=False, num_classes=10)
    return make_case(module, torch.randn(2, 3, 160, 160), folder / "vit.onnx")


@pytest.fixture(scope="session")
def resnet(folder: Path) -> Case:
    """timm's test_resnet, folded, 2:4."""
    torch.manual_seed(0)
    module = timm.create_model(
        "test_resnet", pretrained=False, num_classes=10, zero_init_last=False
    ).eval()
    return make_case(fold_batchnorm(module), torch.randn(2, 3, 160, 160), folder / "resnet.onnx")


@pytest.fixture(scope="session")
def tiny(folder: Path) -> Case:
    """The small plain transformer of this file, dense weights but for 2:4."""
    torch.manual_seed(0)
    return make_case(TinyViT(), torch.randn(4, 3, 32, 32), folder / "tiny.onnx")


def family_module(name: str, config: Schema) -> nn.Module:
    """The largest network of a tiny supernet with random numbers everywhere, folded."""
    family = get_family(name)
    supernet = Supernet.create(family, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, tensor in supernet.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator) * 0.1
            tensor.add_(noise.abs() if "var" in key else noise)
    module = extract(supernet, supernet.space.max()).module.eval()
    return fold_batchnorm_pairs(module, family.fold_pairs(module))


@pytest.fixture(scope="session")
def family_vit(folder: Path) -> Case:
    """The family's ViT: two blocks of 32 values with two heads, 17 tokens."""
    sizes = {"image_size": 32, "patch_size": 8, "width": (32,), "depth": (2,), "heads": (2,)}
    torch.manual_seed(0)
    module = family_module("vit", VitConfig(num_classes=10, mlp_ratio=(2.0,), **sizes))
    return make_case(module, torch.randn(2, 3, 32, 32), folder / "family_vit.onnx")


@pytest.fixture(scope="session")
def swin(folder: Path) -> Case:
    """The family's Swin: two stages, plain and shifted windows of 16 tokens, heads of 16."""
    stages = [SwinStage(depth=(2,), heads=(heads,), mlp_ratio=(2.0,)) for heads in (2, 4)]
    config = SwinConfig(
        image_size=32, patch_size=2, num_classes=10, width=(32,), window=4, stages=tuple(stages)
    )
    torch.manual_seed(0)
    module = family_module("swin", config)
    return make_case(module, torch.randn(2, 3, 32, 32), folder / "swin.onnx")


@pytest.fixture(scope="session")
def elasticvit(folder: Path) -> Case:
    """The family's ElasticViT: convolutions, squeeze-and-excite, attention with biases."""
    config = ElasticVitConfig(
        resolution=(64,),
        image_size=64,
        num_classes=10,
        stem_depth=(1,),
        stem_channels=(16,),
        stages=(
            ConvStage(depth=(2,), channels=(16,), ratio=(2,), kernel=(3,)),
            ConvStage(depth=(1,), channels=(32,), ratio=(2,), kernel=(3,), se=True),
            TokenStage(depth=(2,), channels=(32,)),
            TokenStage(depth=(1,), channels=(48,)),
        ),
        head_dim=16,
        head_expand=2,
        head_hidden=32,
        dropout=0.0,
    )
    torch.manual_seed(0)
    module = family_module("elasticvit", config)
    return make_case(module, torch.randn(2, 3, 64, 64), folder / "elasticvit.onnx")


@pytest.fixture
def new_tiny() -> Callable[[], TinyViT]:
    """Makes the same small transformer again at every call."""
    torch.manual_seed(0)
    model = TinyViT().eval()
    return lambda: copy.deepcopy(model)


@pytest.fixture
def emit_small(tmp_path, take_record):
    """Exports a small module, calibrates it on all of x and writes ort-cpu."""

    def write_small(module, x):
        exported = export_fp32(module, x[:1], tmp_path / "small.onnx")
        record = take_record(module, x)
        path = tmp_path / "small.int8.onnx"
        return path, record, emit("ort-cpu", exported.path, exported.table, record, path)

    return write_small
