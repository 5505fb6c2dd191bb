"""The ResNet as a base of nested levels: every convolution may have a width of its own.

Names and function are torchvision's ``ResNet`` (He et al., arXiv 1512.03385; the stride lies on
the 3x3 convolution).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from elastic_export.elastic.family import Dim, Layout
from elastic_export.families.base import Count, ImageConfig
from elastic_export.families.nested.network import Level, Network

__all__ = ["Block", "PlainNestedResNet", "ResNetNetwork"]


@dataclass(frozen=True)
class Block:
    """One residual block: kernels, and the coupling groups between its convolutions.

    ``groups`` has one entry more than ``kernels``: what goes in, what lies between, what comes out.
    """

    name: str
    kernels: tuple[int, ...]
    groups: tuple[str, ...]
    stride: int
    shortcut: bool

    @property
    def strided(self) -> int:
        """Which convolution has the stride."""
        return self.kernels.index(3)


class ResNetNetwork(Network):
    """What all levels of a ResNet share.

    ``shortcuts`` names the blocks with a convolution in the shortcut, ``layer2.0``. Groups:
    ``stem``, ``layerS.out``, and for each block ``layerS.B.inner1`` (and ``inner2`` in
    bottlenecks). Where the first block has no shortcut convolution, its stage puts out ``stem``.
    """

    arch: Literal["resnet"] = "resnet"
    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: Annotated[tuple[Count, ...], Field(min_length=1)]
    shortcuts: tuple[str, ...]

    @model_validator(mode="after")
    def _possible(self) -> ResNetNetwork:
        firsts = {f"layer{s}.0" for s in range(1, len(self.depths) + 1)}
        if not (firsts - {"layer1.0"} <= set(self.shortcuts) <= firsts):
            raise ValueError(
                "shortcuts must name the first block of every stage (of the first one at will)"
            )
        return self

    def blocks(self) -> Iterator[Block]:
        """All blocks from input to output."""
        kernels = (3, 3) if self.block == "basic" else (1, 3, 1)
        into = "stem"
        for s, depth in enumerate(self.depths, 1):
            for b in range(depth):
                name = f"layer{s}.{b}"
                shortcut = name in self.shortcuts
                out = f"layer{s}.out" if shortcut else into
                inner = [f"{name}.inner{i}" for i in range(1, len(kernels))]
                stride = 2 if s > 1 and not b else 1
                yield Block(name, kernels, (into, *inner, out), stride, shortcut)
                into = out

    @property
    def last(self) -> str:
        """The group that the classifier reads."""
        return list(self.blocks())[-1].groups[-1]

    def layout(self, number: int) -> Layout:
        """A group for each width between two convolutions; residual sums tie theirs together."""
        layout: dict[str, tuple[Dim | None, ...]] = {}

        def conv(name: str, norm: str, out: str, into: str | None) -> None:
            layout[f"{name}.weight"] = (Dim(out), Dim(into) if into else None, None, None)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                layout[f"{norm}.{leaf}"] = (Dim(out),)
            layout[f"{norm}.num_batches_tracked"] = ()

        conv("conv1", "bn1", "stem", None)
        for block in self.blocks():
            for i, into in enumerate(block.groups[:-1], 1):
                conv(f"{block.name}.conv{i}", f"{block.name}.bn{i}", block.groups[i], into)
            if block.shortcut:
                down = f"{block.name}.downsample"
                conv(f"{down}.0", f"{down}.1", block.groups[-1], block.groups[0])
        return layout | {"fc.weight": (None, Dim(self.last)), "fc.bias": (None,)}

    def plain(self, image: ImageConfig, level: Level, number: int) -> nn.Module:
        """A ResNet with a width for each convolution."""
        return PlainNestedResNet(self, image, level)

    def cost(self, image: ImageConfig, level: Level, number: int) -> tuple[int, int]:
        """Sum over blocks."""
        side, stem = _half(image.image_size), level.size("stem")
        weights = 49 * image.in_chans * stem
        macs, params = weights * side**2, weights + 2 * stem
        side = _half(side)
        for block in self.blocks():
            before, side = side, _half(side) if block.stride == 2 else side
            sizes = [level.size(group) for group in block.groups]
            for i, kernel in enumerate(block.kernels):
                weights = kernel**2 * sizes[i] * sizes[i + 1]
                macs += weights * (before if i < block.strided else side) ** 2
                params += weights + 2 * sizes[i + 1]
            if block.shortcut:
                macs += sizes[0] * sizes[-1] * side**2
                params += sizes[0] * sizes[-1] + 2 * sizes[-1]
        last = level.size(self.last)
        return macs + last * image.num_classes, params + (last + 1) * image.num_classes


class _Residual(nn.Module):
    def __init__(self, block: Block, sizes: list[int]) -> None:
        super().__init__()
        for i, kernel in enumerate(block.kernels):
            stride = block.stride if i == block.strided else 1
            self.add_module(f"conv{i + 1}", _conv(sizes[i], sizes[i + 1], kernel, stride))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(sizes[i + 1]))
        self.convs = len(block.kernels)
        if block.shortcut:
            down = _conv(sizes[0], sizes[-1], 1, block.stride)
            self.downsample = nn.Sequential(down, nn.BatchNorm2d(sizes[-1]))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.downsample(x) if hasattr(self, "downsample") else x
        for i in range(1, self.convs + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            x = F.relu(x) if i < self.convs else F.relu(x + skip)
        return x


class PlainNestedResNet(nn.Module):
    """A ResNet in which every convolution may have a width of its own.

    Args:
        network: What the levels share.
        image: Input channels and classes.
        level: The widths.
    """

    def __init__(self, network: ResNetNetwork, image: ImageConfig, level: Level) -> None:
        super().__init__()
        stem = level.size("stem")
        self.conv1 = _conv(image.in_chans, stem, 7, 2)
        self.bn1 = nn.BatchNorm2d(stem)
        stages: dict[str, list[nn.Module]] = {}
        for block in network.blocks():
            sizes = [level.size(group) for group in block.groups]
            stages.setdefault(block.name.split(".")[0], []).append(_Residual(block, sizes))
        for name, blocks in stages.items():
            self.add_module(name, nn.Sequential(*blocks))
        self.stages = tuple(stages)
        self.fc = nn.Linear(level.size(network.last), image.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(x.mean(dim=(2, 3)))


def _conv(into: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, stride=stride, padding=kernel // 2, bias=False)


def _half(side: int) -> int:
    return (side + 1) // 2
