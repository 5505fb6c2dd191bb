"""The networks of the INT8 benchmark, with random weights and their BatchNorm folded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.families import get_family
from elastic_export.families.elasticvit import ElasticVit, ElasticVitConfig
from elastic_export.families.elasticvit.module import PlainElasticVit
from elastic_export.families.elasticvit.plan import plan_of

__all__ = ["MODELS", "Network", "RandomSplit", "make_network"]

MODELS = (
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "resnet50",
    "elasticvit_s1",
)
"""timm's names, and the network of ElasticViT that was published as S1."""


@dataclass(frozen=True)
class Network:
    """A network, the ``(C, H, W)`` of its images, and whether it has attention."""

    module: nn.Module
    size: tuple[int, int, int]
    transformer: bool


class RandomSplit:
    """Random images with the protocol of a data split."""

    name = "calibration"
    num_classes = 1000
    digest = "random"

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def head(self, n: int, *, name: str | None = None) -> RandomSplit:
        """Take the first images."""
        return RandomSplit(self.images[:n])

    def batches(
        self, batch_size: int, *, seed: int | None = None, drop_last: bool = False, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images in the stored order, with labels that nobody reads."""
        for part in self.images.split(batch_size)[start:]:
            yield part, torch.zeros(len(part), dtype=torch.int64)


def make_network(name: str) -> Network:
    """Make a network of ``MODELS`` or any other of timm's."""
    torch.manual_seed(0)
    if name == "elasticvit_s1":
        return Network(_elasticvit_s1(), (3, 192, 192), transformer=True)
    module = timm.create_model(name, pretrained=False).eval()
    attention = any("attn" in part for part, _ in module.named_modules())
    size = module.pretrained_cfg["input_size"]
    _randomise_norms(module)
    if any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        _fold_traced(module)
    return Network(module, size, transformer=attention)


def _elasticvit_s1() -> nn.Module:
    family = get_family("elasticvit")
    assert isinstance(family, ElasticVit)
    config = ElasticVitConfig()
    module = PlainElasticVit(plan_of(config, family.named_specs(config)["elastic_S1"])).eval()
    generator = torch.Generator().manual_seed(0)
    family.initialise(config, module, generator)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name.endswith("attn.bias"):
            tensor.data.normal_(0, 0.02, generator=generator)
    _randomise_norms(module)
    return fold_batchnorm(module, family.fold_pairs(module))


def _randomise_norms(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.0)
            nn.init.normal_(part.bias, std=0.1)


def _fold_traced(module: nn.Module) -> None:
    parts = dict(module.named_modules())
    for node in fx.symbolic_trace(module).graph.nodes:
        if node.op == "call_module" and isinstance(parts[node.target], nn.BatchNorm2d):
            before = node.args[0].target
            module.set_submodule(before, fuse_conv_bn_eval(parts[before], parts[node.target]))
            module.set_submodule(node.target, nn.Identity())
