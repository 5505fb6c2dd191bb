"""The plain ConvNeXt: timm's parameter names, static shapes, ordinary layers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from elastic_export.families.convnext.config import ConvNextConfig

__all__ = ["PlainConvNext"]

# Of ConvNeXt V2 (Woo et al., arXiv 2301.00808) and of timm's GlobalResponseNorm.
_GRN_EPS = 1e-6


class _ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _ResponseNorm(nn.Module):
    """Global response norm of (B, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        share = response / (response.mean(dim=-1, keepdim=True) + _GRN_EPS)
        return x + (x * share * self.weight + self.bias)


class _Block(nn.Module):
    def __init__(self, config: ConvNextConfig, width: int, inner: int) -> None:
        super().__init__()
        kernel = config.kernel_size
        self.conv_dw = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        layers = [("fc1", nn.Linear(width, inner)), ("act", nn.GELU())]
        if config.grn:
            layers.append(("grn", _ResponseNorm(inner)))
        self.mlp = nn.Sequential(OrderedDict([*layers, ("fc2", nn.Linear(inner, width))]))
        if config.layer_scale:
            self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        if hasattr(self, "gamma"):
            y = y * self.gamma
        return x + y.permute(0, 3, 1, 2)


class PlainConvNext(nn.Module):
    """A ConvNeXt of given sizes; every block may have its own hidden width.

    Args:
        config: What the whole supernet shares.
        widths: Width of each stage.
        inner: Hidden width of each block of each stage.
    """

    def __init__(self, config: ConvNextConfig, widths: list[int], inner: list[list[int]]) -> None:
        super().__init__()
        eps, patch = config.norm_eps, config.patch_size
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_chans, widths[0], patch, stride=patch),
            _ChannelNorm(widths[0], eps=eps),
        )
        stages = []
        for s, (width, sizes) in enumerate(zip(widths, inner, strict=True)):
            into = widths[max(s - 1, 0)]
            down = (_ChannelNorm(into, eps=eps), nn.Conv2d(into, width, 2, stride=2))
            blocks = nn.Sequential(*(_Block(config, width, size) for size in sizes))
            parts = [("downsample", nn.Sequential(*down))] if s else []
            stages.append(nn.Sequential(OrderedDict([*parts, ("blocks", blocks)])))
        self.stages = nn.Sequential(*stages)
        norm = nn.LayerNorm(widths[-1], eps=config.head_norm_eps or eps)
        fc = nn.Linear(widths[-1], config.num_classes)
        self.head = nn.Sequential(OrderedDict(norm=norm, fc=fc))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        return self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))
