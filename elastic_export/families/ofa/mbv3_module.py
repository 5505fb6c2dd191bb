"""The plain module of an Once-for-all MobileNetV3: timm's parameter names and structure."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from elastic_export.families.mobile import DepthwiseSeparable, InvertedResidual, make_divisible
from elastic_export.families.ofa.mbv3_config import STAGES, OfaMbv3Config

__all__ = ["PlainMbv3", "squeezed"]

REDUCTION = 4


def squeezed(channels: int) -> int:
    """Inner channels of a squeeze-and-excite."""
    return make_divisible(channels // REDUCTION)


class _Expansion(nn.Module):
    def __init__(self, into: int, out: int, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(self.bn1(self.conv(x)))


class PlainMbv3(nn.Module):
    """A MobileNetV3 of given sizes.

    Args:
        config: What the whole supernet shares.
        stages: For each elastic stage its blocks, as kernel size and inner channels.
    """

    def __init__(self, config: OfaMbv3Config, stages: Sequence[Sequence[tuple[int, int]]]) -> None:
        super().__init__()
        first, into, *outs, last, mix = config.widths
        eps = config.bn_eps
        self.conv_stem = nn.Conv2d(config.in_chans, first, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first, eps)
        groups = [nn.Sequential(DepthwiseSeparable(first, into, 3, 1, "relu", None, eps))]
        for (stride, act, squeeze), out, sizes in zip(STAGES, outs, stages, strict=True):
            blocks: list[nn.Module] = []
            for kernel, mid in sizes:
                step, se = 1 if blocks else stride, squeezed(mid) if squeeze else None
                if config.expands:
                    block: nn.Module = InvertedResidual(into, mid, out, kernel, step, act, se, eps)
                else:
                    block = DepthwiseSeparable(into, out, kernel, step, act, se, eps)
                blocks.append(block)
                into = out
            groups.append(nn.Sequential(*blocks))
        groups.append(nn.Sequential(_Expansion(into, last, eps)))
        self.blocks = nn.Sequential(*groups)
        self.conv_head = nn.Conv2d(last, mix, 1, bias=False)
        self.classifier = nn.Linear(mix, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = self.blocks(F.hardswish(self.bn1(self.conv_stem(x))))
        x = F.hardswish(self.conv_head(x.mean((2, 3), keepdim=True)))
        return self.classifier(x.flatten(1))
