"""ELSA's own counts of FLOPs and parameters.

Source: ``flops`` and ``num_params`` of the sparse DeiT and Swin of ningchihuang/ELSA. FLOPs are
multiply-adds; an N:M layer counts N/M, each LayerNorm of a block one operation for each value.
DeiT counts neither the last norm nor the head, and always takes a hidden layer four times as wide
as the embedding. Swin counts patch embedding and merging with their norms, and averaging as one
operation for each value of the first stage's map over two to the number of stages. Parameters that
the masks remove do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from elastic_export.families.swin.config import SwinConfig
from elastic_export.families.vit.config import LINEARS, VitConfig
from elastic_export.space import density
from elastic_export.space.cost import reduction_block

__all__ = ["deit_flops", "elsa_params", "removed_of_group", "swin_flops"]

_ASPECTS = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4, "mlp.fc2": 4}


def deit_flops(config: VitConfig, spec: Mapping[str, Any]) -> float:
    """FLOPs of a DeiT: DeiT-S has 4.60 G dense and 2.51 G with 2:4 everywhere."""
    width, tokens = max(config.width), config.tokens
    patches = (config.image_size // config.patch_size) ** 2
    total = float(patches * width * config.in_chans * config.patch_size**2)
    for i in range(max(config.depth)):
        total += 2 * tokens * width
        total += 2 * tokens**2 * max(config.heads) * config.dim_of_head
        for name in LINEARS:
            kept = _density(spec, f"blocks.{i}.{name}")
            total += tokens * width * width * _ASPECTS[name] * kept
    return total


def swin_flops(config: SwinConfig, spec: Mapping[str, Any]) -> float:
    """FLOPs of a Swin Transformer: Swin-S has 8.75 G dense and 4.58 G with 2:4 everywhere."""
    widths = config.widths(max(config.width))
    first = config.side(0) ** 2
    total = float(first * widths[0] * config.in_chans * config.patch_size**2)
    total += first * widths[0] * config.patch_norm
    for s, b in config.places():
        width, places = widths[s], config.side(s) ** 2
        heads, ratio = max(config.stages[s].heads), max(config.stages[s].mlp_ratio)
        block = f"layers.{s}.blocks.{b}"
        kept = {name: _density(spec, f"{block}.{name}") for name in LINEARS}
        total += 2 * width * places
        total += places * width * width * (3 * kept["attn.qkv"] + kept["attn.proj"])
        total += 2 * places * config.window_of(s) ** 2 * heads * config.dim_of_head(s)
        total += places * width * width * ratio * (kept["mlp.fc1"] + kept["mlp.fc2"])
    for s, width in enumerate(widths[:-1]):
        total += config.side(s) ** 2 * width + (config.side(s) // 2) ** 2 * 8 * width**2
    total += widths[-1] * first // 2 ** len(widths)
    return total + widths[-1] * config.num_classes


def elsa_params(shapes: Mapping[str, tuple[int, ...]], spec: Mapping[str, Any]) -> int:
    """Parameters that the masks of a spec leave.

    Args:
        shapes: Every learnable tensor of the supernet.
        spec: Patterns by ``<layer>.nm``.
    """
    total = sum(prod(shape) for shape in shapes.values())
    for name, pattern in spec.items():
        if name.endswith(".nm"):
            removed, of = removed_of_group(str(pattern))
            total -= prod(shapes[f"{name.removesuffix('.nm')}.weight"]) // of * removed
    return total


def removed_of_group(pattern: str) -> tuple[int, int]:
    """How many values of a group ELSA removes, and the length of the group.

    It computes int(M (1 - N/M)), which for some patterns is one less than M - N, such as 4:5.
    """
    m = reduction_block(pattern)
    return int(m * (1 - density(pattern))), m


def _density(spec: Mapping[str, Any], layer: str) -> float:
    return density(str(spec.get(f"{layer}.nm", "dense")))
