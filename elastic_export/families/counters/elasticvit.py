"""ElasticViT's own MFLOPs, by which its look-up tables and published names go.

Source: ``compute_flops`` of microsoft/Moonlit, folder ElasticViT. One multiply-add counts once, in
millions. Unlike the true count it takes the system's reckoning of sides (rounded down at the stem
and at mobile stages); it counts softmax, and the values' 3x3 convolution as if it were 1x1; every
block of the stem counts with the kernel of the first; each strided mobile block has a shortcut
convolution whether it needs one or not, and one without stride has none; squeeze and excitation and
shortcut of the block that begins a stage of transformer blocks are left out, as are norms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elastic_export.families.elasticvit.config import (
    REDUCTION_RATIO,
    ConvStage,
    ElasticVitConfig,
    TokenStage,
    floored_sides,
)

__all__ = ["elasticvit_mflops"]


def elasticvit_mflops(
    config: ElasticVitConfig,
    spec: Mapping[str, Any],
    *,
    head: str = "mbv3",
    talking: Sequence[bool] = (),
) -> float:
    """MFLOPs of a descendant.

    Args:
        config: The supernet.
        spec: The choices of the descendant.
        head: ``head_type`` of the system's configuration; ``normal`` counts the classifier as if
            it read the last stage, though the network is the same.
        talking: ``talking_head`` of the configuration, for each stage whether a mixing of heads is
            counted that the released network does not have.

    Returns:
        ``62.91512`` for ``elastic_T1`` of the published supernet.
    """
    resolution, stem = int(spec["resolution"]), int(spec["stem.channels"])
    total = _stem(config, spec, resolution, stem)
    into = stem
    sides = floored_sides(config, resolution)
    for s, (stage, side) in enumerate(zip(config.stages, sides, strict=True)):
        if isinstance(stage, ConvStage):
            total += _mobile_stage(stage, spec, s, into, side)
        else:
            mixes = s < len(talking) and bool(talking[s])
            total += _token_stage(config, stage, spec, s, into, side, mixes)
        into = int(spec[f"stages.{s}.channels"])
    if head == "mbv3":
        total += into * into * config.head_expand * sides[-1] ** 2
        total += into * config.head_expand * config.head_hidden
        total += config.head_hidden * config.num_classes
    else:
        total += into * config.num_classes
    return total / 1e6


def _stem(config: ElasticVitConfig, spec: Mapping[str, Any], resolution: int, stem: int) -> int:
    """The first convolution counts three input channels; halves are rounded after each product."""

    def over_the_map(channels: int) -> int:
        return channels * resolution // 2 * resolution // 2

    kernel = int(spec["stem.0.kernel"])
    block = over_the_map(stem) * kernel**2 + over_the_map(stem * stem)
    return over_the_map(3 * stem) * 9 + block * int(spec["stem.depth"])


def _mobile_stage(stage: ConvStage, spec: Mapping[str, Any], s: int, into: int, side: int) -> int:
    out, total = int(spec[f"stages.{s}.channels"]), 0
    for b in range(int(spec[f"stages.{s}.depth"])):
        strided = stage.downsample and not b
        width, before = (out if b else into), (2 * side if strided else side)
        mid = width * int(spec[f"stages.{s}.{b}.ratio"])
        kernel = int(spec[f"stages.{s}.{b}.kernel"])
        if stage.expands:
            total += width * mid * before**2
        total += (kernel**2 * mid + mid * out) * side**2
        total += 2 * mid * (mid // 4) if stage.se else 0
        total += width * out * side**2 if strided else 0
    return total


def _token_stage(
    config: ElasticVitConfig,
    stage: TokenStage,
    spec: Mapping[str, Any],
    s: int,
    into: int,
    side: int,
    mixes: bool,
) -> int:
    out, area = int(spec[f"stages.{s}.channels"]), side**2
    before = 2 * side if stage.downsample else side
    mid = into * REDUCTION_RATIO
    total = into * mid * before**2 + (9 * mid + mid * out) * area
    for b in range(int(spec[f"stages.{s}.depth"])):
        name = f"stages.{s}.{b}"
        heads, query, value = config.attention(
            out, float(spec[f"{name}.qk_scale"]), float(spec[f"{name}.v_scale"])
        )
        total += heads * area**2 * (query + value + 1)
        total += out * area * heads * (2 * query + value) + area * value * heads * out
        total += area * value * heads
        total += 2 * area * value * heads * heads if mixes else 0
        total += 2 * out * int(float(spec[f"{name}.mlp_ratio"]) * out) * area
    return total
