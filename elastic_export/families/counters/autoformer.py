"""AutoFormer's own counts of parameters and FLOPs.

Source: ``get_sampled_params_numel`` and ``get_complexity`` of microsoft/Cream, folder AutoFormer.
The FLOPs are multiply-adds with LayerNorm, biases of the patch embedding and half an operation for
each addition of positions. Their sequences are longer than the real ones: blocks add one for the
class token, and each layer of a block adds another one. Relative positions are counted by the
limit of the distance instead of the head width. The parameters include a position embedding also
where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_export.families.autoformer.config import AutoFormerConfig

__all__ = ["autoformer_flops", "autoformer_params"]


def autoformer_params(config: AutoFormerConfig, spec: Mapping[str, Any]) -> int:
    """Parameters of a descendant."""
    width, pixels = int(spec["width"]), config.in_chans * config.patch_size**2
    total = width * (pixels + 1) + width * (2 + config.grid**2) + 2 * width
    total += config.num_classes * (width + 1)
    for heads, inner, hidden in _blocks(config, spec):
        total += 3 * inner * (width + config.qkv_bias) + width * (inner + 1)
        total += hidden * (width + 1) + width * (hidden + 1) + 4 * width
        if config.relative_position:
            total += 4 * config.table_rows * (inner // heads)
    return total


def autoformer_flops(config: AutoFormerConfig, spec: Mapping[str, Any]) -> float:
    """FLOPs of a descendant, for the number of patches as sequence length."""
    width, patches = int(spec["width"]), config.grid**2
    total = float(width + patches * width * config.in_chans * config.patch_size**2)
    if not config.no_abs_pos:
        total += config.tokens * width / 2
    tokens = patches + 2
    for _, inner, hidden in _blocks(config, spec):
        total += tokens * (2 * width + 4 * inner * width + 2 * hidden * width)
        total += 2 * tokens**2 * inner
        if config.relative_position:
            total += 2 * config.max_relative_position * tokens**2
            total += tokens**2 / 2 + tokens * inner / 2
    return total + (patches + 1) * width * config.num_classes


def _blocks(config: AutoFormerConfig, spec: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Heads, width of q and hidden width of each block."""
    heads = [int(spec[f"blocks.{i}.heads"]) for i in range(int(spec["depth"]))]
    ratios = [float(spec[f"blocks.{i}.mlp_ratio"]) for i in range(int(spec["depth"]))]
    width = int(spec["width"])
    return [
        (h, config.inner(h), config.hidden(width, r)) for h, r in zip(heads, ratios, strict=True)
    ]
