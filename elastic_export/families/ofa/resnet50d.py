"""Once-for-all ResNet50D: width of the stem and each stage, depths, expansions, input size.

Source: Cai et al., arXiv 1908.09791 (mit-han-lab/once-for-all). Axes end in the official names, so
``{"d": [...], "e": [...], "w": [...]}`` is a spec; widths are indices into ``width_mult_list``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from elastic_export.elastic.family import Dim, Layout
from elastic_export.elastic.skeleton import on_meta
from elastic_export.families.base import ImageFamily
from elastic_export.families.ofa.config import bn_layout
from elastic_export.families.ofa.costs import Leaf, conv_norm, half, linear, total
from elastic_export.families.ofa.resnet50d_config import (
    BASE_DEPTHS,
    OfaResNet50DConfig,
    arch_choices,
)
from elastic_export.families.ofa.resnet50d_module import PlainOfaResNet, StageSizes
from elastic_export.families.registry import register
from elastic_export.space import Axis, Costs, Space, Spec

__all__ = ["OfaResNet50D", "OfaResNet50DConfig", "PlainOfaResNet"]

_STAGES = range(1, len(BASE_DEPTHS) + 1)
_WIDTHS = ("stem.0.w", "stem.2.w", *(f"layer{s}.w" for s in _STAGES))


@register
class OfaResNet50D(ImageFamily):
    """The family ``ofa_resnet50d``."""

    name = "ofa_resnet50d"
    read_by = "ofa"
    bn_variance = "biased"
    Config = OfaResNet50DConfig
    marks = ("input_stem.0.conv.conv.weight", "blocks.0.conv1.conv.conv.weight")

    def space(self, config: OfaResNet50DConfig) -> Space:
        """Axes ``resolution``, the stem's and stages' ``d`` and ``w``, the blocks' ``e``."""
        axes = [Axis("resolution", config.resolution), Axis("stem.d", config.stem_depths)]
        axes += [Axis(f"layer{s}.d", config.depths(s)) for s in _STAGES]
        axes += [Axis(name, config.width_indices(i)) for i, name in enumerate(_WIDTHS)]
        for s, b in _blocks(config):
            when = (f"layer{s}.d", b - BASE_DEPTHS[s - 1])
            axes.append(Axis(f"layer{s}.{b}.e", config.expansions(s, b), when))
        return Space(axes)

    def from_arch(self, config: OfaResNet50DConfig, arch: Mapping[str, Any]) -> Spec:
        """The spec of an arch in the official encoding; see :func:`arch_choices`."""
        return arch_choices(config, self.space(config), arch)

    def skeleton(self, config: OfaResNet50DConfig, spec: Spec) -> PlainOfaResNet:
        """The plain network of a spec on meta."""
        inner, stem, *outs = (config.width(i, int(spec[name])) for i, name in enumerate(_WIDTHS))
        stages: list[StageSizes] = []
        for s, out in zip(_STAGES, outs, strict=True):
            depth = BASE_DEPTHS[s - 1] + int(spec[f"layer{s}.d"])
            ratios = [float(spec[f"layer{s}.{b}.e"]) for b in range(depth)]
            stages.append((out, [config.mid(out, ratio) for ratio in ratios]))
        keeps = config.keeps_stem(int(spec["stem.d"]))
        with on_meta():
            return PlainOfaResNet(
                config.in_chans, (inner, stem), keeps, stages, config.num_classes, config.bn_eps
            ).eval()

    def layout(self, config: OfaResNet50DConfig) -> Layout:
        """Two groups for the stem, one for each stage's output, one for each inner width."""
        layout: dict[str, tuple[Dim | None, ...]] = {}

        def conv(name: str, norm: str, out: Dim, into: Dim | None) -> None:
            layout.update({f"{name}.weight": (out, into, None, None), **bn_layout(norm, out)})

        inner, into = Dim("stem.inner"), Dim("stem")
        conv("stem.0.conv", "stem.0.bn", inner, None)
        conv("stem.1.conv", "stem.1.bn", inner, inner)
        conv("stem.2.conv", "stem.2.bn", into, inner)
        for s, b in _blocks(config):
            block, out, mid = f"layer{s}.{b}", Dim(f"layer{s}.out"), Dim(f"layer{s}.{b}.mid")
            conv(f"{block}.conv1", f"{block}.bn1", mid, into)
            conv(f"{block}.conv2", f"{block}.bn2", mid, mid)
            conv(f"{block}.conv3", f"{block}.bn3", out, mid)
            if not b:
                conv(f"{block}.downsample.1", f"{block}.downsample.2", out, into)
            into = out
        return layout | {"fc.weight": (None, into), "fc.bias": (None,)}

    def costs(self, config: OfaResNet50DConfig, space: Space, genes: np.ndarray) -> Costs:
        """Sum over layers."""
        return total(self.leaves(config, space, genes), len(genes))

    def leaves(self, config: OfaResNet50DConfig, space: Space, genes: np.ndarray) -> Iterator[Leaf]:
        """MACs and parameters of every layer, in the order of the official module."""
        widths = []
        for place, name in enumerate(_WIDTHS):
            choices = [config.width(place, index) for index in config.width_indices(place)]
            widths.append(np.array(choices)[genes[:, space.index[name]]])
        inner, into, *outs = widths
        side = half(space.values(genes, "resolution").astype(np.int64))
        kept = (space.values(genes, "stem.d") == max(config.depth_list)).astype(np.int64)
        yield from conv_norm(config.in_chans, inner, side, 3)
        yield from conv_norm(inner, inner, side, 3, kept)
        yield from conv_norm(inner, into, side, 3)
        side = half(side)
        for s, b in _blocks(config):
            before, out, place = side, outs[s - 1], s + 1
            side = half(side) if s > 1 and not b else side
            depth = BASE_DEPTHS[s - 1] + space.values(genes, f"layer{s}.d")
            live = (depth > b).astype(np.int64)
            table = [
                [config.mid(config.width(place, w), e) for e in config.expansions(s, b)]
                for w in config.width_indices(place)
            ]
            columns = (space.index[_WIDTHS[place]], space.index[f"layer{s}.{b}.e"])
            mid = np.array(table)[genes[:, columns[0]], genes[:, columns[1]]]
            yield from conv_norm(into, mid, before, 1, live)
            yield from conv_norm(mid, mid, side, 3, live)
            yield from conv_norm(mid, out, side, 1, live)
            if not b:
                yield from conv_norm(into, out, side, 1)
            into = out
        yield linear(into, config.num_classes)

    def initialise(
        self, config: OfaResNet50DConfig, module: nn.Module, generator: torch.Generator
    ) -> None:
        """He normal (fan out); the last norm of a block with a bare shortcut starts at zero."""
        bare = {f"layer{s}.{b}.bn3.weight" for s, b in _blocks(config) if b}
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.dim() == 4:
                    fan_out = tensor.shape[0] * tensor.shape[2] * tensor.shape[3]
                    tensor.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
                elif name == "fc.weight":
                    tensor.normal_(0.0, 0.01, generator=generator)
                elif name.endswith(("weight", "running_var")):
                    tensor.fill_(0.0 if name in bare else 1.0)
                else:
                    tensor.zero_()


def _blocks(config: OfaResNet50DConfig) -> Iterator[tuple[int, int]]:
    """Stage, from 1, and number of every block of the deepest network."""
    for s in _STAGES:
        for b in range(config.blocks(s)):
            yield s, b
