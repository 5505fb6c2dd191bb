"""ResNet: depth and width of each stage, expansion of each block; BatchNorm is recalibrated.

Plain modules have timm's parameter names and compute what timm's ``ResNet`` computes (He et al.,
arXiv 1512.03385; deep stem and average-pooled shortcuts of He et al., arXiv 1812.01187).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from elastic_export.config.base import Schema
from elastic_export.elastic.family import Dim, Layout
from elastic_export.elastic.skeleton import on_meta
from elastic_export.errors import UserError
from elastic_export.families.base import Count, ImageConfig, ImageFamily, Ratios, Sizes, ascending
from elastic_export.families.registry import register
from elastic_export.space import Axis, Costs, Space, Spec

__all__ = ["PlainResNet", "ResNet", "ResNetConfig", "Stage"]


class Stage(Schema):
    """Choices of one stage, from small to large.

    ``width`` is what the stage puts out; ``expand`` times it the inner width of a block (0.25 in
    ResNet-50's bottlenecks, 1.0 in ResNet-18's basic blocks).
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depth: Sizes
    width: Sizes
    expand: Ratios

    @model_validator(mode="after")
    def _ordered(self) -> Stage:
        ascending(self, "depth", "width", "expand")
        return self


class ResNetConfig(ImageConfig):
    """Sizes and choices of one ResNet supernet.

    ``stem`` lists the widths after the stem. Where the first block has no shortcut convolution
    (stem and first stage equally wide), the stem follows the first stage and must list its widths.
    Inner widths are rounded to a multiple of ``align``.
    """

    stem: Sizes = (64,)
    stem_type: Literal["plain", "deep"] = "plain"
    avg_down: bool = False
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    align: Count = 1

    @model_validator(mode="after")
    def _possible(self) -> ResNetConfig:
        if self.tied and self.stem != self.stages[0].width:
            raise ValueError(
                f"the first stage has no shortcut convolution, so stem must list its widths "
                f"{list(self.stages[0].width)}"
            )
        if self.stem_type == "deep" and any(width % 2 for width in self.stem):
            raise ValueError("a deep stem needs even widths in stem")
        return self

    @property
    def tied(self) -> bool:
        """Whether the stem has the first stage's width."""
        return max(self.stem) == max(self.stages[0].width)

    def inner(self, width: int, expand: float) -> int:
        """Inner width of a block: ``inner(256, 0.25)`` is 64."""
        return max(self.align, int(width * expand / self.align + 0.5) * self.align)


def _conv(into: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, stride=stride, padding=kernel // 2, bias=False)


def _kernels(block: str) -> tuple[int, ...]:
    return (3, 3) if block == "basic" else (1, 3, 1)


class _Block(nn.Module):
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1, and a shortcut."""

    def __init__(
        self,
        config: ResNetConfig,
        block: str,
        into: int,
        inner: int,
        out: int,
        stride: int,
        shortcut: bool,
    ) -> None:
        super().__init__()
        self.kernels = _kernels(block)
        widths = [into, *[inner] * (len(self.kernels) - 1), out]
        strided = self.kernels.index(3)
        for i, kernel in enumerate(self.kernels):
            conv = _conv(widths[i], widths[i + 1], kernel, stride if i == strided else 1)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        if shortcut and config.avg_down:
            pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
            self.downsample = nn.Sequential(
                pool if stride > 1 else nn.Identity(), _conv(into, out, 1), nn.BatchNorm2d(out)
            )
        elif shortcut:
            self.downsample = nn.Sequential(_conv(into, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.downsample(x) if hasattr(self, "downsample") else x
        last = len(self.kernels)
        for i in range(1, last + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            x = F.relu(x) if i < last else F.relu(x + skip)
        return x


class PlainResNet(nn.Module):
    """A ResNet of given sizes.

    Args:
        config: What the whole supernet shares.
        stem: Width after the stem.
        widths: Output width of each stage.
        inner: Inner width of each block of each stage.
    """

    def __init__(
        self, config: ResNetConfig, stem: int, widths: list[int], inner: list[list[int]]
    ) -> None:
        super().__init__()
        if config.stem_type == "deep":
            half = stem // 2
            self.conv1: nn.Module = nn.Sequential(
                _conv(config.in_chans, half, 3, 2),
                nn.BatchNorm2d(half),
                nn.ReLU(),
                _conv(half, half, 3),
                nn.BatchNorm2d(half),
                nn.ReLU(),
                _conv(half, stem, 3),
            )
        else:
            self.conv1 = _conv(config.in_chans, stem, 7, 2)
        self.bn1 = nn.BatchNorm2d(stem)
        into = stem
        for s, (stage, width) in enumerate(zip(config.stages, widths, strict=True)):
            blocks = []
            for b, hidden in enumerate(inner[s]):
                stride = 2 if s and not b else 1
                shortcut = not b and _has_shortcut(config, s)
                blocks.append(_Block(config, stage.block, into, hidden, width, stride, shortcut))
                into = width
            self.add_module(f"layer{s + 1}", nn.Sequential(*blocks))
        self.stages = len(widths)
        self.fc = nn.Linear(into, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for s in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{s}")(x)
        return self.fc(x.mean(dim=(2, 3)))


def _has_shortcut(config: ResNetConfig, stage: int) -> bool:
    return stage > 0 or not config.tied


@register
class ResNet(ImageFamily):
    """The family ``resnet``."""

    name = "resnet"
    Config = ResNetConfig
    marks = ("bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "fc.weight")

    def space(self, config: ResNetConfig) -> Space:
        """Axes ``stem``, then for each stage width, depth, and for each block expand."""
        axes = [] if config.tied else [Axis("stem", config.stem)]
        for s, stage in enumerate(config.stages, 1):
            depth = f"layer{s}.depth"
            axes += [Axis(f"layer{s}.width", stage.width), Axis(depth, stage.depth)]
            axes += [
                Axis(f"layer{s}.{b}.expand", stage.expand, (depth, b))
                for b in range(max(stage.depth))
            ]
        return Space(axes)

    def skeleton(self, config: ResNetConfig, spec: Spec) -> PlainResNet:
        """The plain ResNet of a spec on meta."""
        widths = [int(spec[f"layer{s + 1}.width"]) for s in range(len(config.stages))]
        inner = [
            [
                config.inner(width, float(spec[f"layer{s}.{b}.expand"]))
                for b in range(int(spec[f"layer{s}.depth"]))
            ]
            for s, width in enumerate(widths, 1)
        ]
        with on_meta():
            return PlainResNet(config, int(spec.get("stem", widths[0])), widths, inner).eval()

    def layout(self, config: ResNetConfig) -> Layout:
        """One group for the stem, one for each stage's output, one for each inner width."""
        layout: dict[str, tuple[Dim | None, ...]] = {}

        def conv(name: str, norm: str, out: Dim, into: Dim | None) -> None:
            layout[f"{name}.weight"] = (out, into, None, None)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                layout[f"{norm}.{leaf}"] = (out,)
            layout[f"{norm}.num_batches_tracked"] = ()

        into = Dim("layer1.out" if config.tied else "stem")
        if config.stem_type == "deep":
            half = Dim("stem.inner")
            conv("conv1.0", "conv1.1", half, None)
            conv("conv1.3", "conv1.4", half, half)
            conv("conv1.6", "bn1", into, half)
        else:
            conv("conv1", "bn1", into, None)
        for s, stage in enumerate(config.stages, 1):
            out = Dim(f"layer{s}.out")
            for b in range(max(stage.depth)):
                block, inner = f"layer{s}.{b}", Dim(f"layer{s}.{b}.inner")
                convs = len(_kernels(stage.block))
                dims = [into, *[inner] * (convs - 1), out]
                for i in range(convs):
                    conv(f"{block}.conv{i + 1}", f"{block}.bn{i + 1}", dims[i + 1], dims[i])
                if not b and _has_shortcut(config, s - 1):
                    first = 1 if config.avg_down else 0
                    down = f"{block}.downsample"
                    conv(f"{down}.{first}", f"{down}.{first + 1}", out, into)
                into = out
        return layout | {"fc.weight": (None, into), "fc.bias": (None,)}

    def costs(self, config: ResNetConfig, space: Space, genes: np.ndarray) -> Costs:
        """Sum over blocks; every individual of the population at once."""

        def values(name: str) -> np.ndarray:
            return space.values(genes, name)

        side = _half(config.image_size)
        into = values("layer1.width" if config.tied else "stem").astype(np.int64)
        if config.stem_type == "deep":
            half = into // 2
            weights = 9 * half * (config.in_chans + half + into)
            norms = 2 * (2 * half + into)
        else:
            weights, norms = 49 * config.in_chans * into, 2 * into
        macs, params = weights * side**2, weights + norms
        side = _half(side)
        for s, stage in enumerate(config.stages, 1):
            out = values(f"layer{s}.width").astype(np.int64)
            depth = values(f"layer{s}.depth").astype(np.int64)
            kernels = _kernels(stage.block)
            for b in range(max(stage.depth)):
                before, side = side, _half(side) if s > 1 and not b else side
                live = (depth > b).astype(np.int64)
                expand = values(f"layer{s}.{b}.expand").astype(np.float64)
                ratio = out * expand / config.align + 0.5
                inner = np.maximum(config.align, ratio.astype(np.int64) * config.align)
                widths = [into, *[inner] * (len(kernels) - 1), out]
                strided = kernels.index(3)
                for i, kernel in enumerate(kernels):
                    weights = kernel**2 * widths[i] * widths[i + 1]
                    macs = macs + live * weights * (before if i < strided else side) ** 2
                    params = params + live * (weights + 2 * widths[i + 1])
                if not b and _has_shortcut(config, s - 1):
                    macs = macs + into * out * side**2
                    params = params + into * out + 2 * out
                into = out
        macs = macs + into * config.num_classes
        params = params + (into + 1) * config.num_classes
        return Costs(macs, macs, macs, params)

    def initialise(
        self, config: ResNetConfig, module: nn.Module, generator: torch.Generator
    ) -> None:
        """He normal (fan out) for convolutions; each block's last norm starts at zero."""
        lasts = {
            f"layer{s}.{b}.bn{len(_kernels(stage.block))}.weight"
            for s, stage in enumerate(config.stages, 1)
            for b in range(max(stage.depth))
        }
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.dim() == 4:
                    fan_out = tensor.shape[0] * tensor.shape[2] * tensor.shape[3]
                    tensor.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
                elif name == "fc.weight":
                    tensor.normal_(0.0, 0.01, generator=generator)
                elif name.endswith(("weight", "running_var")):
                    tensor.fill_(0.0 if name in lasts else 1.0)
                else:
                    tensor.zero_()

    def fold_pairs(self, module: nn.Module) -> list[tuple[str, str]]:
        """Every convolution with the BatchNorm behind it."""
        return list(_fold_pairs(dict(module.named_modules())))

    def recognise(
        self, shapes: Mapping[str, tuple[int, ...]], hints: Mapping[str, Any]
    ) -> ResNetConfig:
        """Read sizes from timm's (and torchvision's) names; ``image_size`` comes from hints."""
        for name in self.marks:
            if name not in shapes:
                raise UserError(
                    f"This is not a ResNet checkpoint with timm's names: {name} is missing.",
                    "Check model.family; inspect the file to see what it holds.",
                )
        deep = "conv1.0.weight" in shapes
        stages = []
        for s in sorted({int(m[1]) for k in shapes if (m := re.match(r"layer(\d+)\.", k))}):
            blocks = {int(m[1]) for k in shapes if (m := re.match(rf"layer{s}\.(\d+)\.", k))}
            kind = "bottleneck" if f"layer{s}.0.conv3.weight" in shapes else "basic"
            last = f"layer{s}.0.conv{len(_kernels(kind))}.weight"
            width, inner = shapes[last][0], shapes[f"layer{s}.0.conv1.weight"][0]
            if shapes[f"layer{s}.0.conv2.weight"][1] != inner:
                raise UserError(
                    f"layer{s} has grouped convolutions, which family resnet does not build.",
                    "Only ResNets with ungrouped convolutions can be imported as this family.",
                )
            stages.append(
                {
                    "block": kind,
                    "depth": (max(blocks) + 1,),
                    "width": (width,),
                    "expand": (inner / width,),
                }
            )
        found = {
            "in_chans": shapes["conv1.0.weight" if deep else "conv1.weight"][1],
            "num_classes": shapes["fc.weight"][0],
            "stem": (shapes["bn1.weight"][0],),
            "stem_type": "deep" if deep else "plain",
            "avg_down": any(name.endswith("downsample.2.weight") for name in shapes),
            "stages": tuple(stages),
        }
        return ResNetConfig.model_validate({**found, **hints})


def _half(side: int) -> int:
    return (side + 1) // 2


def _fold_pairs(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    for name, layer in modules.items():
        if not isinstance(layer, nn.Conv2d):
            continue
        head, _, leaf = name.rpartition(".")
        prefix = f"{head}." if head else ""
        if leaf.startswith("conv"):
            candidate = f"{prefix}bn{leaf.removeprefix('conv')}"
        else:
            candidate = f"{prefix}{int(leaf) + 1}"
            candidate = candidate if candidate in modules else "bn1"
        if isinstance(modules.get(candidate), nn.BatchNorm2d):
            yield name, candidate
