"""The plain module of an Once-for-all ResNet50D; its stages have timm's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PlainOfaResNet", "StageSizes"]

StageSizes = tuple[int, Sequence[int]]
"""Output width of a stage and inner width of each of its blocks."""


class _Unit(nn.Module):
    """A 3x3 convolution, BatchNorm and ReLU."""

    def __init__(self, into: int, out: int, stride: int, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(out, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1 and a shortcut, which is pooled before its 1x1."""

    def __init__(self, into: int, mid: int, out: int, stride: int, first: bool, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid, eps)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid, eps)
        self.conv3 = nn.Conv2d(mid, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out, eps)
        pool: nn.Module = nn.Identity()
        if stride > 1:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        shortcut = (pool, nn.Conv2d(into, out, 1, bias=False), nn.BatchNorm2d(out, eps))
        self.downsample = nn.Sequential(*(shortcut if first else ()))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + skip)


class PlainOfaResNet(nn.Module):
    """A ResNet50D of given sizes.

    Args:
        in_chans: Input channels.
        stem: Inner and outer width of the stem.
        keeps_stem: Whether the stem has its residual convolution.
        stages: Sizes of each stage.
        num_classes: Length of the logits.
        eps: Of BatchNorm.
    """

    def __init__(
        self,
        in_chans: int,
        stem: tuple[int, int],
        keeps_stem: bool,
        stages: Sequence[StageSizes],
        num_classes: int,
        eps: float,
    ) -> None:
        super().__init__()
        inner, into = stem
        units = {"0": _Unit(in_chans, inner, 2, eps), "2": _Unit(inner, into, 1, eps)}
        if keeps_stem:
            units["1"] = _Unit(inner, inner, 1, eps)
        self.stem = nn.ModuleDict(dict(sorted(units.items())))
        for s, (out, mids) in enumerate(stages, 1):
            blocks = []
            for b, mid in enumerate(mids):
                stride = 2 if s > 1 and not b else 1
                blocks.append(_Bottleneck(into, mid, out, stride, not b, eps))
                into = out
            self.add_module(f"layer{s}", nn.Sequential(*blocks))
        self.stages = len(stages)
        self.fc = nn.Linear(into, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = self.stem["0"](x)
        if "1" in self.stem:
            x = x + self.stem["1"](x)
        x = F.max_pool2d(self.stem["2"](x), 3, stride=2, padding=1)
        for s in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{s}")(x)
        return self.fc(x.mean((2, 3)))
