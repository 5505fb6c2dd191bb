"""The counters of AttentiveNAS and AlphaNet.

Source: ``compute_active_subnet_flops`` of facebookresearch/AttentiveNAS. It counts multiply-adds of
convolutions and of the classifier in millions; squeeze-and-excite as two convolutions on one pixel;
no norms, activations or biases. Two of its habits show in odd cases only: an odd resolution is
halved downwards by the first convolution, and a stage whose expand ratios go beyond 1 counts the
expanding convolution also where the ratio is 1. Their parameters are those of the static network,
whose blocks all own a 1x1 convolution for the shortcut, also where none is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_export.families.alphanet.config import AlphaNetConfig, inner_width
from elastic_export.families.alphanet.module import EXPANSION

__all__ = ["alphanet_mflops", "alphanet_params"]


def alphanet_mflops(config: AlphaNetConfig, spec: Mapping[str, Any]) -> float:
    """Millions of FLOPs of a descendant."""
    into = int(spec["stem.width"])
    side = int(spec["resolution"]) // config.stem_stride
    total = 9 * config.in_chans * into * side**2
    for s, stage in enumerate(config.stages):
        out, kernel = int(spec[f"stages.{s}.width"]), int(spec[f"stages.{s}.kernel_size"])
        ratio = float(spec[f"stages.{s}.expand_ratio"])
        for b in range(int(spec[f"stages.{s}.depth"])):
            inner = inner_width(round(into * ratio))
            if max(stage.expand_ratio) > 1:
                total += into * inner * side**2
            stride = 1 if b else stage.stride
            side = (side + stride - 1) // stride
            total += inner * kernel**2 * side**2 + inner * out * side**2
            if stage.se:
                total += 2 * inner * inner_width(inner // 4)
            if into != out:
                total += into * out * side**2
            into = out
    head = int(spec["head.width"])
    if config.v3_head:
        total += EXPANSION * into * (into * side**2 + head)
    else:
        total += into * head * side**2
    return (total + head * config.num_classes) / 1e6


def alphanet_params(config: AlphaNetConfig, spec: Mapping[str, Any]) -> int:
    """Parameters of a descendant, with the shortcuts' convolutions that it does not need."""
    into = int(spec["stem.width"])
    total = 9 * config.in_chans * into + 2 * into
    for s, stage in enumerate(config.stages):
        out, kernel = int(spec[f"stages.{s}.width"]), int(spec[f"stages.{s}.kernel_size"])
        ratio = float(spec[f"stages.{s}.expand_ratio"])
        for _ in range(int(spec[f"stages.{s}.depth"])):
            inner = inner_width(round(into * ratio))
            total += inner * (into + 2) if ratio != 1 else 0
            total += inner * (kernel**2 + 2) + out * (inner + 2) + into * out
            if stage.se:
                squeeze = inner_width(inner // 4)
                total += 2 * inner * squeeze + squeeze + inner
            into = out
    head = int(spec["head.width"])
    wide = EXPANSION * into if config.v3_head else head
    total += wide * (into + 2) + (head * wide if config.v3_head else 0)
    return total + (head + 1) * config.num_classes
