"""Swin Transformer: width, depth of each stage, heads, MLP ratio and N:M of each layer.

Plain modules compute what Microsoft's code and timm's ``SwinTransformer`` compute (Liu et al.,
arXiv 2103.14030); names are Microsoft's, see ``swin_module``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from elastic_export.elastic.family import Dim, Family, Layout
from elastic_export.elastic.rules import Rule
from elastic_export.elastic.rules_tables import TableGather
from elastic_export.elastic.rules_windows import ConstantLike, shifted_window_mask
from elastic_export.elastic.skeleton import on_meta
from elastic_export.families.base import ImageFamily
from elastic_export.families.patterns import MacSum
from elastic_export.families.registry import family_config, register
from elastic_export.families.swin.config import LINEARS, ROUNDING, SwinConfig, SwinStage
from elastic_export.families.swin.module import PlainSwin, StageSizes
from elastic_export.families.swin.names import MARKS, settings_from_shapes
from elastic_export.space import Axis, Costs, Space, Spec

__all__ = ["PlainSwin", "Swin", "SwinConfig", "SwinStage"]


@register
class Swin(ImageFamily):
    """The family ``swin``."""

    name = "swin"
    Config = SwinConfig
    marks = MARKS

    def space(self, config: SwinConfig) -> Space:
        """Axes ``width``, then by stage depth, and by block heads, MLP ratio and patterns."""
        axes = [Axis("width", config.width)]
        for s, stage in enumerate(config.stages):
            depth = f"layers.{s}.depth"
            axes.append(Axis(depth, stage.depth))
            for b in range(max(stage.depth)):
                block, when = f"layers.{s}.blocks.{b}", (depth, b)
                axes.append(Axis(f"{block}.heads", stage.heads, when))
                axes.append(Axis(f"{block}.mlp_ratio", stage.mlp_ratio, when))
                for name in LINEARS:
                    patterns = config.patterns_of(f"{block}.{name}")
                    if patterns != ("dense",):
                        axes.append(Axis(f"{block}.{name}.nm", patterns, when))
        return Space(axes)

    def skeleton(self, config: SwinConfig, spec: Spec) -> PlainSwin:
        """The plain Swin of a spec on meta."""
        return _module(config, spec, stored=False)

    def stored(self, config: SwinConfig) -> PlainSwin:
        """The largest Swin with bias tables instead of gathered biases, without masks."""
        return _module(config, self.space(config).max(), stored=True)

    def layout(self, config: SwinConfig) -> Layout:
        """One group for each stage's embedding, and for each block one for heads and hidden.

        The stages' groups are one choice (each is twice as wide as the one before), but have
        different sizes.
        """
        layout: dict[str, tuple[Dim | None, ...]] = {}
        stages = range(len(config.stages))
        embed = [Dim(f"embed.{s}") for s in stages]

        def norm(name: str, dim: Dim) -> None:
            layout.update({f"{name}.weight": (dim,), f"{name}.bias": (dim,)})

        layout["patch_embed.proj.weight"] = (embed[0], None, None, None)
        layout["patch_embed.proj.bias"] = (embed[0],)
        layout["absolute_pos_embed"] = (None, None, embed[0])
        norm("patch_embed.norm", embed[0])
        for s, b in config.places():
            block, e = f"layers.{s}.blocks.{b}", embed[s]
            qkv = Dim(f"{block}.heads", blocks=3)
            heads, hidden = Dim(f"{block}.heads"), Dim(f"{block}.hidden")
            norm(f"{block}.norm1", e)
            norm(f"{block}.norm2", e)
            layout |= {
                f"{block}.attn.qkv.weight": (qkv, e),
                f"{block}.attn.qkv.bias": (qkv,),
                f"{block}.attn.proj.weight": (e, heads),
                f"{block}.attn.proj.bias": (e,),
                f"{block}.attn.relative_position_bias_table": (None, Dim(f"{block}.biases")),
                f"{block}.attn.relative_position_bias": (Dim(f"{block}.biases"), None, None),
                f"{block}.attn_mask": (None, None, None),
                f"{block}.mlp.fc1.weight": (hidden, e),
                f"{block}.mlp.fc1.bias": (hidden,),
                f"{block}.mlp.fc2.weight": (e, hidden),
                f"{block}.mlp.fc2.bias": (e,),
            }
        for s in stages[:-1]:
            four = Dim(f"embed.{s}", blocks=4)
            norm(f"layers.{s}.downsample.norm", four)
            layout[f"layers.{s}.downsample.reduction.weight"] = (embed[s + 1], four)
        norm("norm", embed[-1])
        return layout | {"head.weight": (None, embed[-1]), "head.bias": (None,)}

    def rules(self, config: SwinConfig, spec: Spec, plain: nn.Module) -> dict[str, Rule]:
        """Prefixes as the layout says, gathered biases, and masks that the sizes alone decide."""
        rules = super().rules(config, spec, plain)
        for name in rules:
            if not name.endswith(("relative_position_bias", "attn_mask")):
                continue
            s, b = (int(number) for number in re.findall(r"\.(\d+)\.", name))
            if name.endswith("attn_mask"):
                shift = config.shift_of(s, b)
                mask = shifted_window_mask(config.side(s), config.window_of(s), shift)
                rules[name] = ConstantLike(mask, "head.weight")
            else:
                heads = int(spec[f"layers.{s}.blocks.{b}.heads"])
                window = config.window_of(s)
                rules[name] = TableGather(f"{name}_table", window, window, heads)
        return rules

    def costs(self, config: SwinConfig, space: Space, genes: np.ndarray) -> Costs:
        """Sum over stages and blocks; every individual of the population at once."""
        width = space.values(genes, "width").astype(np.int64)
        pixels, places = config.in_chans * config.patch_size**2, config.side(0) ** 2
        last = width << (len(config.stages) - 1)
        fixed = places * pixels * width + config.num_classes * last
        params = width * (pixels + 1 + 2 * config.patch_norm + places * config.ape)
        params += 2 * last + config.num_classes * (last + 1)
        for s in range(len(config.stages) - 1):
            wide = width << s
            fixed += config.side(s + 1) ** 2 * 8 * wide**2
            params += 8 * wide**2 + 8 * wide
        macs = MacSum(space, genes)
        macs.add(fixed)
        for s, b in config.places():
            block, wide, places = f"layers.{s}.blocks.{b}", width << s, config.side(s) ** 2
            window = config.window_of(s) ** 2
            live = (space.values(genes, f"layers.{s}.depth") > b).astype(np.int64)
            heads = space.values(genes, f"{block}.heads").astype(np.int64)
            inner = heads * config.dim_of_head(s)
            ratio = space.values(genes, f"{block}.mlp_ratio").astype(np.float64)
            hidden = (wide * ratio + ROUNDING).astype(np.int64)
            weights = (3 * inner * wide, inner * wide, hidden * wide, hidden * wide)
            macs.add(live * 2 * places * window * inner)
            for name, count in zip(LINEARS, weights, strict=True):
                macs.add_layer(f"{block}.{name}", live * places * count)
            biases = 3 * inner * config.qkv_bias + wide + hidden + wide
            params += live * (sum(weights) + biases + 4 * wide + heads * window**2)
        return macs.costs(params)

    def initialise(self, config: SwinConfig, module: nn.Module, generator: torch.Generator) -> None:
        """Clipped normal weights, zero biases; see ``init_std`` and ``pos_std``."""
        for name, tensor in module.named_parameters():
            with torch.no_grad():
                if re.search(r"norm\d?\.weight$", name):
                    tensor.fill_(1.0)
                elif name.endswith(".bias"):
                    tensor.zero_()
                elif name.startswith("patch_embed"):
                    bound = tensor[0].numel() ** -0.5
                    tensor.uniform_(-bound, bound, generator=generator)
                else:
                    positions = name.endswith(("bias_table", "pos_embed"))
                    std = config.pos_std if positions else config.init_std
                    tensor.normal_(0.0, std, generator=generator).clamp_(-2 * std, 2 * std)

    def recognise(
        self, shapes: Mapping[str, tuple[int, ...]], hints: Mapping[str, Any]
    ) -> SwinConfig:
        """Read sizes from the names of ``swin_module``; see ``settings_from_shapes``."""
        config = family_config(cast("Family", self), settings_from_shapes(shapes, hints))
        assert isinstance(config, SwinConfig)
        return config


def _module(config: SwinConfig, spec: Spec, *, stored: bool) -> PlainSwin:
    width = int(spec["width"])
    sizes = []
    for s, wide in enumerate(config.widths(width)):
        blocks = [f"layers.{s}.blocks.{b}" for b in range(int(spec[f"layers.{s}.depth"]))]
        heads = tuple(int(spec[f"{block}.heads"]) for block in blocks)
        ratios = (float(spec[f"{block}.mlp_ratio"]) for block in blocks)
        sizes.append(StageSizes(heads, tuple(config.hidden(wide, ratio) for ratio in ratios)))
    with on_meta():
        return PlainSwin(config, width, sizes, stored=stored).eval()
