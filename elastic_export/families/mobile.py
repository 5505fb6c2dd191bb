"""Blocks that mobile networks share: rounding of widths, squeeze-and-excite, inverted residual.

Parameter names are those of timm's EfficientNet blocks (Sandler et al., arXiv 1801.04381; Howard et
al., arXiv 1905.02244).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Activation",
    "DepthwiseSeparable",
    "InvertedResidual",
    "SqueezeExcite",
    "activation",
    "make_divisible",
]

Activation = Literal["relu", "h_swish"]


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple, never down by more than a tenth.

    Returns:
        ``make_divisible(19.2)`` is 24 (16 would lose more than a tenth), ``make_divisible(30)`` 32.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def activation(kind: Activation) -> nn.Module:
    """The layer of an activation."""
    return nn.ReLU() if kind == "relu" else nn.Hardswish()


def depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """A depthwise convolution that keeps the size at stride 1."""
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)


class SqueezeExcite(nn.Module):
    """Scale channels by a hard sigmoid of two 1x1 convolutions of their means."""

    def __init__(self, channels: int, mid: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, mid, 1)
        self.conv_expand = nn.Conv2d(mid, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled ``x`` (B, C, H, W)."""
        scale = self.conv_expand(F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * F.hardsigmoid(scale)


class DepthwiseSeparable(nn.Module):
    """Depthwise, squeeze-and-excite, 1x1 without activation.

    Args:
        into: Input channels, which the depthwise convolution keeps.
        out: Output channels.
        kernel: Size of the depthwise kernel.
        stride: Of the depthwise convolution.
        act: After the depthwise convolution.
        squeeze: Inner channels of the squeeze-and-excite; None for none.
        eps: Of BatchNorm.
    """

    def __init__(
        self,
        into: int,
        out: int,
        kernel: int,
        stride: int,
        act: Activation,
        squeeze: int | None,
        eps: float,
    ) -> None:
        super().__init__()
        self.conv_dw = depthwise(into, kernel, stride)
        self.bn1 = nn.BatchNorm2d(into, eps)
        self.act = activation(act)
        self.se = SqueezeExcite(into, squeeze) if squeeze else nn.Identity()
        self.conv_pw = nn.Conv2d(into, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, eps)
        self.has_skip = stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out, H', W') of (B, into, H, W)."""
        y = self.se(self.act(self.bn1(self.conv_dw(x))))
        y = self.bn2(self.conv_pw(y))
        return x + y if self.has_skip else y


class InvertedResidual(nn.Module):
    """1x1 to ``mid`` channels, depthwise, squeeze-and-excite, 1x1 without activation.

    Args:
        into: Input channels.
        mid: Channels of the depthwise convolution.
        out: Output channels.
        kernel: Size of the depthwise kernel.
        stride: Of the depthwise convolution.
        act: After the first two convolutions.
        squeeze: Inner channels of the squeeze-and-excite; None for none.
        eps: Of BatchNorm.
    """

    def __init__(
        self,
        into: int,
        mid: int,
        out: int,
        kernel: int,
        stride: int,
        act: Activation,
        squeeze: int | None,
        eps: float,
    ) -> None:
        super().__init__()
        self.conv_pw = nn.Conv2d(into, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid, eps)
        self.act1 = activation(act)
        self.conv_dw = depthwise(mid, kernel, stride)
        self.bn2 = nn.BatchNorm2d(mid, eps)
        self.act2 = activation(act)
        self.se = SqueezeExcite(mid, squeeze) if squeeze else nn.Identity()
        self.conv_pwl = nn.Conv2d(mid, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out, eps)
        self.has_skip = stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out, H', W') of (B, into, H, W)."""
        y = self.act1(self.bn1(self.conv_pw(x)))
        y = self.se(self.act2(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.has_skip else y
