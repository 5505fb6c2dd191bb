"""DeiT / ViT: embedding width, depth, heads, MLP ratio and N:M of each layer.

Plain modules have timm's parameter names and compute what timm's ``VisionTransformer`` computes
(Dosovitskiy et al., arXiv 2010.11929; Touvron et al., arXiv 2012.12877). A head is ``head_dim``
wide whatever the embedding width, as in AutoFormer, so attention may be narrower than the
embedding.
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
from elastic_export.elastic.rules_bias import DeadHeads
from elastic_export.elastic.skeleton import on_meta
from elastic_export.families.base import ImageFamily
from elastic_export.families.patterns import MacSum
from elastic_export.families.registry import family_config, register
from elastic_export.families.vit.config import LINEARS, ROUNDING, VitConfig
from elastic_export.families.vit.module import PlainVit
from elastic_export.families.vit.names import MARKS, settings_from_shapes
from elastic_export.space import Axis, Costs, Space, Spec

__all__ = ["PlainVit", "Vit", "VitConfig"]


@register
class Vit(ImageFamily):
    """The family ``vit``."""

    name = "vit"
    Config = VitConfig
    marks = MARKS

    def space(self, config: VitConfig) -> Space:
        """Axes ``width``, ``depth``, then for each block heads, MLP ratio and four patterns."""
        axes = [Axis("width", config.width), Axis("depth", config.depth)]
        for i in range(max(config.depth)):
            when = ("depth", i)
            axes.append(Axis(f"blocks.{i}.heads", config.heads_in(i), when))
            axes.append(Axis(f"blocks.{i}.mlp_ratio", config.ratios_in(i), when))
            for name in LINEARS:
                patterns = config.patterns_of(f"blocks.{i}.{name}")
                if patterns != ("dense",):
                    axes.append(Axis(f"blocks.{i}.{name}.nm", patterns, when))
        return Space(axes)

    def skeleton(self, config: VitConfig, spec: Spec) -> PlainVit:
        """The plain ViT of a spec on meta."""
        width, blocks = int(spec["width"]), range(int(spec["depth"]))
        heads = [int(spec[f"blocks.{i}.heads"]) for i in blocks]
        hidden = [config.hidden(width, float(spec[f"blocks.{i}.mlp_ratio"])) for i in blocks]
        with on_meta():
            return PlainVit(config, width, heads, hidden).eval()

    def layout(self, config: VitConfig) -> Layout:
        """One group for the embedding, and for each block one for heads and one for hidden."""
        e = Dim("embed")
        layout: dict[str, tuple[Dim | None, ...]] = {
            "cls_token": (None, None, e),
            "dist_token": (None, None, e),
            "reg_token": (None, None, e),
            "pos_embed": (None, None, e),
            "patch_embed.proj.weight": (e, None, None, None),
            "patch_embed.proj.bias": (e,),
            "token_score.weight": (None, e),
            "token_score.bias": (None,),
        }
        for norm in ("norm", "fc_norm"):
            layout |= {f"{norm}.weight": (e,), f"{norm}.bias": (e,)}
        for head in ("head", "head_dist"):
            layout |= {f"{head}.weight": (None, e), f"{head}.bias": (None,)}
        for i in range(max(config.depth)):
            b = f"blocks.{i}"
            qkv = Dim(f"{b}.heads", blocks=3)
            heads, hidden = Dim(f"{b}.heads"), Dim(f"{b}.hidden")
            for norm in ("norm1", "norm2"):
                layout |= {f"{b}.{norm}.weight": (e,), f"{b}.{norm}.bias": (e,)}
            layout |= {
                f"{b}.attn.qkv.weight": (qkv, e),
                f"{b}.attn.qkv.bias": (qkv,),
                f"{b}.attn.proj.weight": (e, heads),
                f"{b}.attn.proj.bias": (e,),
                f"{b}.ls1.gamma": (e,),
                f"{b}.mlp.fc1.weight": (hidden, e),
                f"{b}.mlp.fc1.bias": (hidden,),
                f"{b}.mlp.fc2.weight": (e, hidden),
                f"{b}.mlp.fc2.bias": (e,),
                f"{b}.ls2.gamma": (e,),
            }
        return layout

    def rules(self, config: VitConfig, spec: Spec, plain: nn.Module) -> dict[str, Rule]:
        """Prefixes; where removed heads are dead, the projection's bias takes their constant."""
        rules = super().rules(config, spec, plain)
        if config.dead_heads and config.qkv_bias:
            for i in range(int(spec["depth"])):
                attn, kept = f"blocks.{i}.attn", int(spec[f"blocks.{i}.heads"])
                if kept < max(config.heads_in(i)):
                    rules[f"{attn}.proj.bias"] = DeadHeads(
                        f"{attn}.proj.bias",
                        f"{attn}.proj.weight",
                        f"{attn}.qkv.bias",
                        int(spec["width"]),
                        kept * config.dim_of_head,
                    )
        return rules

    def costs(self, config: VitConfig, space: Space, genes: np.ndarray) -> Costs:
        """Sum over blocks; every individual of the population at once."""
        tokens, head_dim = config.block_tokens, config.dim_of_head
        scored = config.tokens if config.token_keep else 0
        width = space.values(genes, "width").astype(np.int64)
        depth = space.values(genes, "depth").astype(np.int64)
        patches = (config.image_size // config.patch_size) ** 2
        pixels = config.in_chans * config.patch_size**2
        heads_out = (1 + config.distilled) * config.num_classes
        fixed = (patches * pixels + scored + heads_out) * width
        macs = MacSum(space, genes)
        macs.add(fixed)
        extra = config.tokens + config.prefix_tokens + 2 + pixels + 1
        params = width * extra + (heads_out + bool(scored)) * (width + 1)
        for i in range(max(config.depth)):
            live = (depth > i).astype(np.int64)
            inner = space.values(genes, f"blocks.{i}.heads").astype(np.int64) * head_dim
            ratio = space.values(genes, f"blocks.{i}.mlp_ratio").astype(np.float64)
            hidden = (width * ratio + ROUNDING).astype(np.int64)
            weights = (3 * inner * width, inner * width, hidden * width, hidden * width)
            macs.add(live * 2 * tokens * tokens * inner)
            for name, count in zip(LINEARS, weights, strict=True):
                macs.add_layer(f"blocks.{i}.{name}", live * tokens * count)
            biases = 3 * inner * config.qkv_bias + width + hidden + width
            norms = width * (4 + 2 * config.layer_scale)
            params += live * (sum(weights) + biases + norms)
        return macs.costs(params)

    def initialise(self, config: VitConfig, module: nn.Module, generator: torch.Generator) -> None:
        """Clipped normal weights, zero biases; see ``init_std`` and ``pos_std``."""
        stds = {"pos_embed": config.pos_std}
        for name, tensor in module.named_parameters():
            with torch.no_grad():
                if re.search(r"norm\d?\.weight$", name):
                    tensor.fill_(1.0)
                elif name.endswith(".bias"):
                    tensor.zero_()
                elif name.endswith(".gamma"):
                    tensor.fill_(1e-5)
                elif name.startswith("patch_embed"):
                    bound = tensor[0].numel() ** -0.5
                    tensor.uniform_(-bound, bound, generator=generator)
                else:
                    std = config.init_std if name.startswith("blocks") else stds.get(name, 0.02)
                    tensor.normal_(0.0, std, generator=generator).clamp_(-2 * std, 2 * std)

    def recognise(
        self, shapes: Mapping[str, tuple[int, ...]], hints: Mapping[str, Any]
    ) -> VitConfig:
        """Read sizes from timm's names; the head count must come from ``hints`` (``heads``)."""
        family = cast("Family", self)
        config = family_config(family, settings_from_shapes(shapes, hints))
        assert isinstance(config, VitConfig)
        return config
