"""The plain AttentiveNAS / AlphaNet network: static shapes, ordinary layers, batch axis kept.

Source: Wang et al., AttentiveNAS (arXiv 2011.09011) and AlphaNet (arXiv 2102.07954).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from elastic_export.families.alphanet.config import Activation, AlphaNetConfig
from elastic_export.families.mobile import SqueezeExcite

__all__ = ["EXPANSION", "MobileBlock", "MobileSizes", "PlainAlphaNet"]

EXPANSION = 6
"""How much the head with ``v3_head`` widens the features before their average."""

_LAYERS = {"swish": nn.SiLU, "h_swish": nn.Hardswish, "relu": nn.ReLU, "relu6": nn.ReLU6}


@dataclass(frozen=True)
class MobileSizes:
    """Sizes of one inverted residual block.

    Attributes:
        into: Input channels.
        inner: Channels of the depthwise convolution.
        out: Output channels.
        kernel: Size of the depthwise kernel.
        stride: Of the depthwise convolution.
        expand: Whether a 1x1 convolution comes before the depthwise one.
        squeeze: Channels inside the squeeze-and-excite; 0 for none.
        odd: Whether the input's height and width are odd.
        shortcut: Whether the shortcut has a 1x1 convolution.
    """

    into: int
    inner: int
    out: int
    kernel: int
    stride: int
    expand: bool
    squeeze: int
    odd: bool
    shortcut: bool


class MobileBlock(nn.Module):
    """An inverted residual block whose shortcut also crosses strides and widths."""

    def __init__(self, sizes: MobileSizes, act: Activation, eps: float) -> None:
        super().__init__()
        self.expand = sizes.expand
        if sizes.expand:
            self.conv_pw = nn.Conv2d(sizes.into, sizes.inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(sizes.inner, eps)
            self.act1 = _LAYERS[act]()
        self.conv_dw = nn.Conv2d(
            sizes.inner,
            sizes.inner,
            sizes.kernel,
            sizes.stride,
            sizes.kernel // 2,
            groups=sizes.inner,
            bias=False,
        )
        self.bn2 = nn.BatchNorm2d(sizes.inner, eps)
        self.act2 = _LAYERS[act]()
        self.se = SqueezeExcite(sizes.inner, sizes.squeeze) if sizes.squeeze else nn.Identity()
        self.conv_pwl = nn.Conv2d(sizes.inner, sizes.out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(sizes.out, eps)
        # Zeros that pad an odd size count in the average.
        self.pool = nn.AvgPool2d(2, padding=int(sizes.odd)) if sizes.stride > 1 else nn.Identity()
        self.shortcut = (
            nn.Conv2d(sizes.into, sizes.out, 1, bias=False) if sizes.shortcut else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out, H', W') of (B, into, H, W)."""
        y = self.act1(self.bn1(self.conv_pw(x))) if self.expand else x
        y = self.se(self.act2(self.bn2(self.conv_dw(y))))
        return self.bn3(self.conv_pwl(y)) + self.shortcut(self.pool(x))


class PlainAlphaNet(nn.Module):
    """A network of given sizes.

    Args:
        config: What the whole supernet shares.
        stem: Width after the first convolution.
        stages: Sizes of each block of each stage.
        head: Width before the classifier.
    """

    def __init__(
        self, config: AlphaNetConfig, stem: int, stages: Sequence[Sequence[MobileSizes]], head: int
    ) -> None:
        super().__init__()
        eps, act = config.bn_eps, _LAYERS[config.head_act]
        self.conv_stem = nn.Conv2d(
            config.in_chans, stem, 3, config.stem_stride, padding=1, bias=False
        )
        self.bn_stem = nn.BatchNorm2d(stem, eps)
        self.act_stem = _LAYERS[config.stem_act]()
        self.stages = nn.Sequential(
            *(
                nn.Sequential(*(MobileBlock(sizes, stage.act, eps) for sizes in blocks))
                for stage, blocks in zip(config.stages, stages, strict=True)
            )
        )
        into = stages[-1][-1].out
        self.v3_head = config.v3_head
        wide = EXPANSION * into if self.v3_head else head
        self.conv_head = nn.Conv2d(into, wide, 1, bias=False)
        self.bn_head = nn.BatchNorm2d(wide, eps)
        self.act_head = act()
        if self.v3_head:
            self.conv_mix = nn.Conv2d(wide, head, 1, bias=False)
            self.act_mix = act()
        self.classifier = nn.Linear(head, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = self.act_stem(self.bn_stem(self.conv_stem(x)))
        x = self.act_head(self.bn_head(self.conv_head(self.stages(x))))
        x = x.mean((2, 3), keepdim=True)
        if self.v3_head:
            x = self.act_mix(self.conv_mix(x))
        return self.classifier(x.flatten(1))
