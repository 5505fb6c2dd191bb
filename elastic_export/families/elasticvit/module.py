"""The plain ElasticViT: static shapes, ordinary layers, names close to the system's.

Source: Tang et al., ElasticViT (arXiv 2303.09730); facts from microsoft/Moonlit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention", "MobileSizes", "PlainElasticVit", "Plan", "TokenSizes"]


@dataclass(frozen=True)
class MobileSizes:
    """Sizes of a mobile block: widths, kernel, stride, the side of its input, and which parts."""

    into: int
    mid: int
    out: int
    kernel: int
    stride: int
    side: int
    se: bool
    expands: bool
    shortcut: bool


@dataclass(frozen=True)
class TokenSizes:
    """Sizes of a transformer block on a ``side`` x ``side`` map; the first has a ``reduction``."""

    width: int
    heads: int
    query: int
    value: int
    hidden: int
    side: int
    reduction: MobileSizes | None = None


@dataclass(frozen=True)
class Plan:
    """Sizes of a whole network: the stem's and each stage's blocks, then the head's widths."""

    stem: tuple[MobileSizes, ...]
    stages: tuple[tuple[MobileSizes, ...] | tuple[TokenSizes, ...], ...]
    in_chans: int
    expanded: int
    features: int
    classes: int
    dropout: float

    @property
    def width(self) -> int:
        """Channels behind the last stage."""
        last = self.stages[-1][-1]
        return last.width if isinstance(last, TokenSizes) else last.out


class MobileBlock(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection, and a shortcut.

    Where the block is strided, its shortcut averages 2 x 2 pixels; an odd side is padded by zeros
    that count. Source: Sandler et al., MobileNetV2 (arXiv 1801.04381).
    """

    def __init__(self, sizes: MobileSizes) -> None:
        super().__init__()
        mid, kernel = sizes.mid, sizes.kernel
        self.act = nn.Hardswish()
        self.expands, self.se = sizes.expands, sizes.se
        if sizes.expands:
            self.pw_conv = nn.Conv2d(sizes.into, mid, 1, bias=False)
            self.pw_bn = nn.BatchNorm2d(mid)
        self.dw_conv = nn.Conv2d(
            mid, mid, kernel, sizes.stride, kernel // 2, groups=mid, bias=False
        )
        self.dw_bn = nn.BatchNorm2d(mid)
        if sizes.se:
            self.se_conv1 = nn.Conv2d(mid, mid // 4, 1)
            self.se_conv2 = nn.Conv2d(mid // 4, mid, 1)
        self.pwl_conv = nn.Conv2d(mid, sizes.out, 1, bias=False)
        self.pwl_bn = nn.BatchNorm2d(sizes.out)
        self.pool = nn.AvgPool2d(2, padding=sizes.side % 2) if sizes.stride > 1 else nn.Identity()
        self.shortcut_conv = (
            nn.Conv2d(sizes.into, sizes.out, 1, bias=False) if sizes.shortcut else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """A map (B, C, H, W) in, a map of the same or of half the side out."""
        y = self.act(self.pw_bn(self.pw_conv(x))) if self.expands else x
        y = self.act(self.dw_bn(self.dw_conv(y)))
        if self.se:
            gate = F.relu(self.se_conv1(y.mean(dim=(2, 3), keepdim=True)))
            y = y * F.hardsigmoid(self.se_conv2(gate))
        return self.pwl_bn(self.pwl_conv(y)) + self.shortcut_conv(self.pool(x))


class MapNorm(nn.Module):
    """A layer norm over tokens and channels together, with a scale and a bias per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Norm tokens (B, N, C)."""
        return F.layer_norm(x, x.shape[1:]) * self.weight + self.bias


class Attention(nn.Module):
    """Self-attention with a bias per pair of positions and a convolution over the values.

    ``bias`` (heads, tokens, tokens) is what the table of relative positions says at this map size.
    """

    bias: Tensor

    def __init__(self, sizes: TokenSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.parts = [sizes.heads * n for n in (sizes.query, sizes.query, sizes.value)]
        tokens, values = sizes.side**2, self.parts[2]
        self.norm = MapNorm(sizes.width)
        self.qkv = nn.Linear(sizes.width, sum(self.parts), bias=False)
        self.v_conv = nn.Conv2d(values, values, 3, padding=1, groups=values, bias=False)
        self.register_buffer("bias", torch.empty(sizes.heads, tokens, tokens))
        self.act = nn.Hardswish()
        self.proj = nn.Linear(values, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, N, C), whose number is a square."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).split(self.parts, dim=-1)
        q, k = (part.reshape(batch, tokens, self.heads, -1).transpose(1, 2) for part in (q, k))
        v = self.v_conv(_as_map(v)).reshape(batch, self.heads, -1, tokens).transpose(2, 3)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.proj(self.act(mixed.transpose(1, 2).reshape(batch, tokens, -1)))


class FeedForward(nn.Module):
    """Norm and two linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = MapNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.Hardswish()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C)."""
        return self.fc2(self.act(self.fc1(self.norm(x))))


class TokenBlock(nn.Module):
    """A transformer block on tokens (B, N, C); the first of a stage takes a map as well."""

    def __init__(self, sizes: TokenSizes) -> None:
        super().__init__()
        self.reduction = None if sizes.reduction is None else MobileBlock(sizes.reduction)
        self.attn = Attention(sizes)
        self.ffn = FeedForward(sizes.width, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C), or a map (B, C, H, W) where there is a reduction."""
        if self.reduction is not None:
            x = self.reduction(x if x.dim() == 4 else _as_map(x)).flatten(2).transpose(1, 2)
        x = x + self.attn(x)
        return x + self.ffn(x)


class PlainElasticVit(nn.Module):
    """An ElasticViT of given sizes."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        stem = plan.stem[0].into
        self.first_conv = nn.Conv2d(plan.in_chans, stem, 3, stride=2, padding=1, bias=False)
        self.first_conv_bn = nn.BatchNorm2d(stem)
        self.act = nn.Hardswish()
        self.stem = nn.Sequential(*(MobileBlock(sizes) for sizes in plan.stem))
        self.stages = nn.Sequential(*(nn.Sequential(*map(_block, stage)) for stage in plan.stages))
        self.pre_head_0 = nn.Linear(plan.width, plan.expanded)
        self.pre_head_norm_0 = nn.BatchNorm1d(plan.expanded)
        self.pre_head_1 = nn.Linear(plan.expanded, plan.features)
        self.dropout = nn.Dropout(plan.dropout)
        self.classifier = nn.Linear(plan.features, plan.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = self.stem(self.act(self.first_conv_bn(self.first_conv(x))))
        x = self.stages(x)
        # Statistics of the norm are over images and tokens alike.
        tokens = x.shape[1]
        y = self.act(self.pre_head_norm_0(self.pre_head_0(x.flatten(0, 1))))
        y = y.reshape(-1, tokens, y.shape[-1]).mean(dim=1)
        return self.classifier(self.dropout(self.act(self.pre_head_1(y))))


def _block(sizes: MobileSizes | TokenSizes) -> nn.Module:
    return MobileBlock(sizes) if isinstance(sizes, MobileSizes) else TokenBlock(sizes)


def _as_map(x: Tensor) -> Tensor:
    """Tokens (B, N, C) as a square map (B, C, H, W)."""
    batch, tokens, width = x.shape
    side = isqrt(tokens)
    return x.transpose(1, 2).reshape(batch, width, side, side)
