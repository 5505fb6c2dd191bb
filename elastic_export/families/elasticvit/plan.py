"""From the choices of ``elasticvit`` to the sizes of its layers."""

from __future__ import annotations

from elastic_export.families.elasticvit.config import (
    REDUCTION_RATIO,
    ConvStage,
    ElasticVitConfig,
    TokenStage,
)
from elastic_export.families.elasticvit.module import MobileSizes, Plan, TokenSizes
from elastic_export.space import Spec

__all__ = ["plan_of", "stored_plan"]


def plan_of(config: ElasticVitConfig, spec: Spec) -> Plan:
    """The sizes of one descendant."""
    resolution, stem = int(spec["resolution"]), int(spec["stem.channels"])
    side, into = (resolution + 1) // 2, stem
    stages: list[tuple[MobileSizes, ...] | tuple[TokenSizes, ...]] = []
    for s, (stage, after) in enumerate(zip(config.stages, config.sides(resolution), strict=True)):
        channels, depth = int(spec[f"stages.{s}.channels"]), int(spec[f"stages.{s}.depth"])
        if isinstance(stage, ConvStage):
            stages.append(
                tuple(
                    _mobile(
                        channels if b else into,
                        channels,
                        int(spec[f"stages.{s}.{b}.ratio"]),
                        int(spec[f"stages.{s}.{b}.kernel"]),
                        2 if stage.downsample and not b else 1,
                        after if b else side,
                        stage.se,
                        stage.expands,
                    )
                    for b in range(depth)
                )
            )
        else:
            first = _reduction(into, channels, stage, side)
            stages.append(
                tuple(
                    _token(config, channels, after, spec, f"stages.{s}.{b}", None if b else first)
                    for b in range(depth)
                )
            )
        side, into = after, channels
    kernels = [int(spec[f"stem.{b}.kernel"]) for b in range(int(spec["stem.depth"]))]
    return Plan(
        tuple(_mobile(stem, stem, 1, k, 1, (resolution + 1) // 2, False, False) for k in kernels),
        tuple(stages),
        config.in_chans,
        into * config.head_expand,
        config.head_hidden,
        config.num_classes,
        config.dropout,
    )


def stored_plan(config: ElasticVitConfig) -> Plan:
    """The sizes of what the supernet stores, but for attention (see ``elasticvit.stored``).

    Every mobile block has a shortcut convolution and as many input channels as its stage has at
    most, whether a descendant reaches them or not.
    """
    stem = max(config.stem_channels)
    stages: list[tuple[MobileSizes, ...] | tuple[TokenSizes, ...]] = []
    for stage in config.stages:
        width = max(stage.channels)
        if isinstance(stage, ConvStage):
            mid, kernel = width * max(stage.ratio), max(stage.kernel)
            sizes = MobileSizes(width, mid, width, kernel, 1, 1, stage.se, stage.expands, True)
            stages.append((sizes,) * max(stage.depth))
        else:
            mid = width * REDUCTION_RATIO
            reduction = MobileSizes(width, mid, width, 3, 1, 1, True, True, True)
            hidden = int(max(stage.mlp_ratio) * width)
            heads, query, value = config.attention(width, 1.0, max(stage.v_scale))
            block = TokenSizes(width, heads, query, value, hidden, 1)
            first = TokenSizes(width, heads, query, value, hidden, 1, reduction)
            stages.append((first,) + (block,) * (max(stage.depth) - 1))
    kernel = max(config.stem_kernel)
    block_of_stem = MobileSizes(stem, stem, stem, kernel, 1, 1, False, False, True)
    return Plan(
        (block_of_stem,) * max(config.stem_depth),
        tuple(stages),
        config.in_chans,
        max(config.stages[-1].channels) * config.head_expand,
        config.head_hidden,
        config.num_classes,
        config.dropout,
    )


def _mobile(
    into: int, out: int, ratio: int, kernel: int, stride: int, side: int, se: bool, expands: bool
) -> MobileSizes:
    mid = into * ratio
    return MobileSizes(into, mid, out, kernel, stride, side, se, expands, shortcut=into != out)


def _reduction(into: int, out: int, stage: TokenStage, side: int) -> MobileSizes:
    return _mobile(into, out, REDUCTION_RATIO, 3, 2 if stage.downsample else 1, side, True, True)


def _token(
    config: ElasticVitConfig,
    width: int,
    side: int,
    spec: Spec,
    name: str,
    reduction: MobileSizes | None,
) -> TokenSizes:
    heads, query, value = config.attention(
        width, float(spec[f"{name}.qk_scale"]), float(spec[f"{name}.v_scale"])
    )
    hidden = int(float(spec[f"{name}.mlp_ratio"]) * width)
    return TokenSizes(width, heads, query, value, hidden, side, reduction)
