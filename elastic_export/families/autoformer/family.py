"""AutoFormer: embedding width, depth, and for each block heads and MLP ratio.

Chen et al., AutoFormer: Searching Transformers for Visual Recognition (arXiv 2107.00651), code in
microsoft/Cream, folder AutoFormer. Widths are prefixes, with one exception: with ``change_qkv`` the
rows of ``qkv.weight`` lie interleaved (q, k, v, q, k, v, ...), while its bias is cut as a plain
prefix. Both are reproduced as they are, since networks were trained that way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from elastic_export.elastic.family import Dim, Layout
from elastic_export.elastic.rules import Index, Prefix, Rule
from elastic_export.elastic.skeleton import on_meta
from elastic_export.errors import UserError
from elastic_export.families.autoformer.config import BOUNDS, HEAD_DIM, AutoFormerConfig
from elastic_export.families.autoformer.module import BlockSizes, PlainAutoFormer
from elastic_export.families.base import ImageFamily
from elastic_export.families.published import published
from elastic_export.families.registry import register
from elastic_export.space import Axis, Costs, Space, Spec

__all__ = ["AutoFormer", "AutoFormerConfig", "PlainAutoFormer"]


class _BoundedSpace(Space):
    """A space that tells how to reach sizes that are stored, but not among the choices."""

    def __init__(self, config: AutoFormerConfig) -> None:
        axes = [Axis("width", config.width), Axis("depth", config.depth)]
        for i in range(max(config.depth)):
            axes.append(Axis(f"blocks.{i}.heads", config.heads, ("depth", i)))
            axes.append(Axis(f"blocks.{i}.mlp_ratio", config.mlp_ratio, ("depth", i)))
        super().__init__(axes)
        self._config = config

    def canonical(self, choices: Mapping[str, Any]) -> Spec:
        """Check what a user wrote; see :meth:`Space.canonical`."""
        try:
            return super().canonical(choices)
        except UserError as error:
            advice = self._advice(choices)
            if advice is None:
                raise
            raise UserError(error.what, advice) from error

    def _advice(self, choices: Mapping[str, Any]) -> str | None:
        for name, value in choices.items():
            short = str(name).rsplit(".", 1)[-1]
            if short not in BOUNDS:
                continue
            listed = getattr(self._config, short)
            for item in value if isinstance(value, list | tuple) else [value]:
                number = isinstance(item, int | float) and not isinstance(item, bool)
                if number and item not in listed:
                    bound = getattr(self._config, BOUNDS[short])
                    if 0 < item <= bound:
                        wider = sorted({*listed, type(listed[0])(item)})
                        return (
                            f"The stored sizes reach up to {bound}; to allow it, add it to the "
                            f"choices: --set {short}={wider}, or {short} in model.config."
                        )
        return None


@register
class AutoFormer(ImageFamily):
    """The family ``autoformer``."""

    name = "autoformer"
    read_by = "autoformer"
    Config = AutoFormerConfig
    marks = ("blocks.0.attn_layer_norm.weight", "patch_embed_super.proj.weight")

    def space(self, config: AutoFormerConfig) -> Space:
        """Axes ``width``, ``depth``, then for each block heads and MLP ratio."""
        return _BoundedSpace(config)

    def skeleton(self, config: AutoFormerConfig, spec: Spec) -> PlainAutoFormer:
        """The plain AutoFormer of a spec on meta."""
        width = int(spec["width"])
        blocks = []
        for i in range(int(spec["depth"])):
            heads, ratio = int(spec[f"blocks.{i}.heads"]), float(spec[f"blocks.{i}.mlp_ratio"])
            inner = config.inner(heads)
            factors = (config.super_width / inner, config.super_mlp_ratio / ratio)
            blocks.append(
                BlockSizes(
                    heads,
                    inner,
                    config.hidden(width, ratio),
                    inner // heads,
                    *(factors if config.scale else ()),
                )
            )
        with on_meta():
            return PlainAutoFormer(config, width, blocks).eval()

    def stored(self, config: AutoFormerConfig) -> PlainAutoFormer:
        """The module at the stored sizes, which no choice may reach."""
        sizes = BlockSizes(
            config.super_heads,
            config.super_width,
            config.hidden(config.super_width, config.super_mlp_ratio),
            config.table_width,
        )
        with on_meta():
            return PlainAutoFormer(config, config.super_width, [sizes] * config.super_depth).eval()

    def layout(self, config: AutoFormerConfig) -> Layout:
        """One group for the embedding, and for each block one for the MLP's hidden layer.

        Rows of ``qkv`` and what follows them have no group: which of them a head reads depends on
        the number of heads.
        """
        e = Dim("embed")
        layout: dict[str, tuple[Dim | None, ...]] = {}
        for name, tensor in self.stored(config).named_parameters():
            hidden = Dim(f"{name.rsplit('.', 2)[0]}.hidden")
            if re.search(r"(cls_token|pos_embed|head\.weight|qkv\.weight)$", name):
                layout[name] = (*[None] * (tensor.dim() - 1), e)
            elif name.endswith("fc1.weight"):
                layout[name] = (hidden, e)
            elif name.endswith("fc1.bias"):
                layout[name] = (hidden,)
            elif name.endswith("fc2.weight"):
                layout[name] = (e, hidden)
            elif re.search(r"(norm|fc2|proj)\.(weight|bias)$", name):
                layout[name] = (e, *[None] * (tensor.dim() - 1))
            else:
                layout[name] = (None,) * tensor.dim()
        return layout

    def rules(self, config: AutoFormerConfig, spec: Spec, plain: nn.Module) -> dict[str, Rule]:
        """Prefixes, but for the rows of ``qkv.weight`` with ``change_qkv``."""
        rules: dict[str, Rule] = {}
        for name, tensor in plain.named_parameters():
            if config.change_qkv and name.endswith("attn.qkv.weight"):
                rows, columns = tensor.shape
                picked = tuple(row for part in range(3) for row in range(part, rows, 3))
                rules[name] = Index(name, (picked, columns))
            else:
                rules[name] = Prefix(name, tuple(tensor.shape))
        return rules

    def costs(self, config: AutoFormerConfig, space: Space, genes: np.ndarray) -> Costs:
        """Sum over blocks; every individual of the population at once."""
        grid, tokens = config.grid, config.tokens
        width = space.values(genes, "width").astype(np.int64)
        depth = space.values(genes, "depth").astype(np.int64)
        pixels = config.in_chans * config.patch_size**2
        macs: np.ndarray = (grid**2 * pixels + config.num_classes) * width
        positions = 0 if config.no_abs_pos else tokens
        params = width * (pixels + 1 + 1 + positions + 2) + config.num_classes * (width + 1)
        for i in range(max(config.depth)):
            live = (depth > i).astype(np.int64)
            heads = space.values(genes, f"blocks.{i}.heads").astype(np.int64)
            ratio = space.values(genes, f"blocks.{i}.mlp_ratio").astype(np.float64)
            stored = np.full_like(heads, config.super_width)
            inner = HEAD_DIM * heads if config.change_qkv else stored
            head_dim = inner // heads
            hidden = (width * ratio).astype(np.int64)
            weights = 4 * inner * width + 2 * hidden * width
            biases = 3 * inner * config.qkv_bias + width + hidden + width
            products = 2 * tokens**2 * inner
            tables = np.zeros_like(heads)
            if config.relative_position:
                # The places add 1 + 2 grid features to both products; then each patch meets the
                # tables of its row and of its column, and once the class token's entry.
                products += 2 * tokens**2 * heads * (1 + 2 * grid)
                products += grid**2 * inner * (4 * grid + 1)
                tables = 4 * config.table_rows * head_dim
            macs += live * (tokens * weights + products)
            params += live * (weights + biases + 4 * width + tables)
        return Costs(macs, macs, macs, params)

    def initialise(
        self, config: AutoFormerConfig, module: nn.Module, generator: torch.Generator
    ) -> None:
        """Clipped normal weights and tables, zero biases."""
        with torch.no_grad():
            for name, tensor in module.named_parameters():
                if re.search(r"norm\.weight$", name):
                    tensor.fill_(1.0)
                elif name.endswith(".bias"):
                    tensor.zero_()
                elif name.startswith("patch_embed"):
                    bound = tensor[0].numel() ** -0.5
                    tensor.uniform_(-bound, bound, generator=generator)
                else:
                    tensor.normal_(0.0, 0.02, generator=generator).clamp_(-0.04, 0.04)

    def named_specs(self, config: Any) -> dict[str, Mapping[str, Any]]:
        """The config's, and the published subnets of a supernet of these sizes and choices."""
        return {**published_specs(config), **config.specs}


def published_specs(config: AutoFormerConfig) -> dict[str, Mapping[str, Any]]:
    """The published subnets whose supernet has this config's sizes and whose values it offers."""
    specs: dict[str, Mapping[str, Any]] = {}
    for entry in published("autoformer").values():
        sizes = all(getattr(config, name) == size for name, size in entry["supernet"].items())
        choices = {name: getattr(config, name) for name in BOUNDS}
        for name, genes in entry["subnets"].items():
            values = {k: set(v) if isinstance(v, list) else {v} for k, v in genes.items()}
            if sizes and all(values[k] <= set(choices[k]) for k in values):
                specs[name] = genes
    return specs
