"""Closed-form MACs and parameters of ``elasticvit``."""

from __future__ import annotations

import numpy as np

from elastic_export.families.elasticvit.config import (
    REDUCTION_RATIO,
    ConvStage,
    ElasticVitConfig,
)
from elastic_export.space import Costs, Space

__all__ = ["costs_of"]

Ints = np.ndarray
Pair = tuple[Ints, Ints]


def costs_of(config: ElasticVitConfig, space: Space, genes: np.ndarray) -> Costs:
    """Sum over blocks; every individual of the population at once.

    The gathered bias of attention is not counted among the parameters: it is a constant that
    follows from a small table.
    """

    def ints(name: str) -> Ints:
        return space.values(genes, name).astype(np.int64)

    def floats(name: str) -> np.ndarray:
        return space.values(genes, name).astype(np.float64)

    resolutions = ints("resolution")
    side, into = (resolutions + 1) // 2, ints("stem.channels")
    weights = 9 * config.in_chans * into
    macs, params = weights * side**2, weights + 2 * into
    depth = ints("stem.depth")
    for b in range(max(config.stem_depth)):
        one = np.ones_like(into)
        block = _mobile((into, one, into), ints(f"stem.{b}.kernel"), side, side, False, False)
        macs, params = _add((macs, params), block, depth > b)
    for s, stage in enumerate(config.stages):
        name = f"stages.{s}"
        out, depth = ints(f"{name}.channels"), ints(f"{name}.depth")
        before, side = side, half_of(side) if stage.downsample else side
        for b in range(max(stage.depth)):
            first, at = (before if not b else side), f"{name}.{b}"
            if isinstance(stage, ConvStage):
                widths = (out if b else into, ints(f"{at}.ratio"), out)
                kernel = ints(f"{at}.kernel")
                block = _mobile(widths, kernel, first, side, stage.expands, stage.se)
            else:
                scales = floats(f"{at}.qk_scale"), floats(f"{at}.v_scale")
                block = _attention(config, out, scales, side**2)
                hidden = (floats(f"{at}.mlp_ratio") * out).astype(np.int64)
                products = 2 * out * hidden
                block = block[0] + products * side**2, block[1] + products + hidden + 3 * out
                if not b:
                    widths = (into, np.full_like(into, REDUCTION_RATIO), out)
                    kernel = np.full_like(into, 3)
                    reduction = _mobile(widths, kernel, first, side, True, True)
                    block = block[0] + reduction[0], block[1] + reduction[1]
            macs, params = _add((macs, params), block, depth > b)
        into = out
    expanded, features = into * config.head_expand, config.head_hidden
    classifier = features * config.num_classes
    macs = macs + side**2 * into * expanded + expanded * features + classifier
    params = params + (into + 3) * expanded + (expanded + 1) * features
    params = params + classifier + config.num_classes
    return Costs(macs, macs, macs, params)


def half_of(side: Ints) -> Ints:
    """:func:`half` for arrays."""
    return (side + 1) // 2


def _add(total: Pair, block: Pair, live: np.ndarray) -> Pair:
    on = live.astype(np.int64)
    return total[0] + on * block[0], total[1] + on * block[1]


def _mobile(
    widths: tuple[Ints, Ints, Ints], kernel: Ints, before: Ints, side: Ints, expands: bool, se: bool
) -> Pair:
    """MACs and parameters; ``widths`` are what goes in, the ratio, and what comes out."""
    into, ratio, out = widths
    mid = into * ratio
    shortcut = (into != out) * into * out
    weights = kernel**2 * mid + mid * out + shortcut
    macs, params = weights * side**2, weights + 2 * mid + 2 * out
    if expands:
        macs, params = macs + into * mid * before**2, params + into * mid + 2 * mid
    if se:
        squeezed = mid // 4
        macs, params = macs + 2 * mid * squeezed, params + 2 * mid * squeezed + squeezed + mid
    return macs, params


def _attention(
    config: ElasticVitConfig, width: Ints, scales: tuple[np.ndarray, np.ndarray], tokens: Ints
) -> Pair:
    heads = width // config.head_dim
    query = (width // heads * scales[0]).astype(np.int64)
    value = (scales[1] * width // heads).astype(np.int64)
    inner = heads * value
    weights = width * heads * (2 * query + value) + 9 * inner + inner * width
    products = heads * tokens**2 * (query + value)
    return weights * tokens + products, weights + width + 2 * width
