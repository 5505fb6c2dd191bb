"""ElasticViT: mobile blocks, then transformer blocks; resolution, widths, depths, ratios, kernels.

Source: Tang et al., ElasticViT (arXiv 2303.09730) and microsoft/Moonlit. The network resizes its
input to the resolution of the descendant by itself; here that is the last step of preparing an
image, so that the exported network has a fixed input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from elastic_export.config.transform import Transform
from elastic_export.elastic.family import Dim, Layout
from elastic_export.elastic.rules import CentreCrop, Index, Prefix, Rule
from elastic_export.elastic.rules_tables import TableGather
from elastic_export.elastic.skeleton import on_meta
from elastic_export.errors import UserError
from elastic_export.families.base import ImageFamily
from elastic_export.families.elasticvit.config import ConvStage, ElasticVitConfig, TokenStage
from elastic_export.families.elasticvit.costs import costs_of
from elastic_export.families.elasticvit.module import Attention, PlainElasticVit
from elastic_export.families.elasticvit.plan import plan_of, stored_plan
from elastic_export.families.elasticvit.space import from_arch, search_space
from elastic_export.families.published import published
from elastic_export.families.registry import register
from elastic_export.space import Costs, Space, Spec

__all__ = ["ConvStage", "ElasticVit", "ElasticVitConfig", "TokenStage", "from_arch"]


@register
class ElasticVit(ImageFamily):
    """The family ``elasticvit``."""

    name = "elasticvit"
    read_by = "elasticvit"
    Config = ElasticVitConfig
    marks = ("feature_exactor.0.layers.0.0.dw_conv.weight", "classifer.weight")

    def space(self, config: ElasticVitConfig) -> Space:
        """See :func:`search_space`."""
        return search_space(config)

    def skeleton(self, config: ElasticVitConfig, spec: Spec) -> PlainElasticVit:
        """The plain ElasticViT of a spec on meta."""
        with on_meta():
            return PlainElasticVit(plan_of(config, spec)).eval()

    def stored(self, config: ElasticVitConfig) -> nn.Module:
        """Each block as wide as its stage may be; bias tables in place of gathered biases."""
        with on_meta():
            net = PlainElasticVit(stored_plan(config)).eval()
            for s, stage in enumerate(config.stages):
                if isinstance(stage, ConvStage):
                    continue
                width, room = max(stage.channels), config.table_sides[s]
                values, heads = int(width * max(stage.v_scale)), config.heads(width)
                for b in range(max(stage.depth)):
                    attention = net.get_submodule(f"stages.{s}.{b}.attn")
                    assert isinstance(attention, Attention)
                    attention.qkv = nn.Linear(width, 2 * width + values, bias=False)
                    attention.v_conv = nn.Conv2d(values, values, 3, groups=values, bias=False)
                    attention.proj = nn.Linear(values, width)
                    del attention.bias
                    attention.bias_table = nn.Parameter(torch.empty((2 * room - 1) ** 2, heads))
        return net

    def rules(self, config: ElasticVitConfig, spec: Spec, plain: nn.Module) -> dict[str, Rule]:
        """Prefixes, but for depthwise kernels, packed rows and bias tables."""
        rules: dict[str, Rule] = {}
        for name, tensor in (*plain.named_parameters(), *plain.named_buffers()):
            shape = tuple(tensor.shape)
            if name.endswith("dw_conv.weight"):
                rules[name] = CentreCrop(name, shape[0], shape[-1])
            elif name.endswith("qkv.weight"):
                rules[name] = Index(name, (_packed_rows(config, spec, name), shape[1]))
            elif name.endswith("attn.bias"):
                room = config.table_sides[int(name.split(".")[1])]
                side = math.isqrt(shape[1])
                rules[name] = TableGather(f"{name}_table", room, side, shape[0])
            else:
                rules[name] = Prefix(name, shape)
        return rules

    def layout(self, config: ElasticVitConfig) -> Layout:
        """One group for the stem and for each stage, and for each block its inner widths.

        Rows of packed projections and what follows them have no group: which of them a head reads
        depends on the number of heads.
        """
        groups: dict[str, tuple[Dim | None, ...]] = {}
        stored = self.stored(config)
        for name, tensor in (*stored.named_parameters(), *stored.named_buffers()):
            parts = name.split(".")
            out, into = _groups(parts, len(config.stages) - 1)
            dims: list[Dim | None] = [None] * tensor.dim()
            if tensor.dim() and out is not None:
                dims[0] = Dim(out)
            if tensor.dim() > 1 and into is not None and tensor.shape[1] > 1:
                dims[1] = Dim(into)
            groups[name] = tuple(dims)
        return groups

    def costs(self, config: ElasticVitConfig, space: Space, genes: np.ndarray) -> Costs:
        """See :func:`costs_of`."""
        return costs_of(config, space, genes)

    def initialise(
        self, config: ElasticVitConfig, module: nn.Module, generator: torch.Generator
    ) -> None:
        """Uniform by fan-in, small normal tables; blocks that keep their shape put out zero."""
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                owner, _, leaf = name.rpartition(".")
                if leaf == "bias_table":
                    tensor.normal_(0.0, 0.02, generator=generator).clamp_(-0.04, 0.04)
                elif leaf in ("weight", "running_var") and tensor.dim() == 1:
                    tensor.fill_(0.0 if _keeps_shape(config, owner) and leaf == "weight" else 1.0)
                elif tensor.dim() > 1:
                    bound = tensor[0].numel() ** -0.5
                    tensor.uniform_(-bound, bound, generator=generator)
                else:
                    tensor.zero_()

    def preprocess(self, config: Any, spec: Spec, transform: Transform) -> Transform:
        """Crop as ever, and resize to the resolution last, as the system does in the network."""
        size = int(spec["resolution"])
        return transform.model_copy(update={"final_size": None if size == transform.size else size})

    def named_specs(self, config: Any) -> dict[str, Mapping[str, Any]]:
        """The published subnets, where they fit this supernet, and those the config names."""
        archs = {name: _fitting(config, arch) for name, arch in published(self.name).items()}
        return {name: genes for name, genes in archs.items() if genes} | config.specs

    def fold_pairs(self, module: nn.Module) -> list[tuple[str, str]]:
        """Every convolution and linear layer with the BatchNorm behind it."""
        pairs = []
        for name, layer in module.named_modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                head, _, leaf = name.rpartition(".")
                before = {
                    "first_conv_bn": "first_conv",
                    "pre_head_norm_0": "pre_head_0",
                }.get(leaf, leaf.replace("_bn", "_conv"))
                pairs.append((f"{head}.{before}" if head else before, name))
        return pairs


def _fitting(config: ElasticVitConfig, arch: Any) -> Mapping[str, Any] | None:
    """The choices of an arch; None where it is of another space."""
    try:
        return from_arch(config, arch)
    except UserError:
        return None


def _packed_rows(config: ElasticVitConfig, spec: Spec, name: str) -> tuple[int, ...]:
    """Rows of the stored projection: all heads' queries, then their keys, then their values.

    The system joins the first q, k and v rows and lets each head read one contiguous piece of the
    result, so what a head takes for queries may be stored as keys. Which numbers meet is kept;
    only the order in which the plain module lists them is an ordinary one.
    """
    _, s, b, *_ = name.split(".")
    stage = config.stages[int(s)]
    widest, width = max(stage.channels), int(spec[f"stages.{s}.channels"])
    heads, query, value = config.attention(
        width, float(spec[f"stages.{s}.{b}.qk_scale"]), float(spec[f"stages.{s}.{b}.v_scale"])
    )
    joined = [
        start + row
        for start, rows in (
            (0, heads * query),
            (widest, heads * query),
            (2 * widest, heads * value),
        )
        for row in range(rows)
    ]
    piece = 2 * query + value
    parts = ((0, query), (query, 2 * query), (2 * query, piece))
    return tuple(
        joined[head * piece + row]
        for start, end in parts
        for head in range(heads)
        for row in range(start, end)
    )


def _keeps_shape(config: ElasticVitConfig, owner: str) -> bool:
    """Whether a name is that of the last norm of a mobile block with stride 1."""
    parts = owner.split(".")
    if parts[-1] != "pwl_bn":
        return False
    first = parts[0] == "stages" and parts[2] == "0"
    return not (first and config.stages[int(parts[1])].downsample)


def _groups(parts: list[str], last_stage: int) -> tuple[str | None, str | None]:
    """Coupling groups of the rows and columns of a stored tensor."""
    layer = parts[-2]
    if parts[0] not in ("stem", "stages"):
        last, width = "head.expanded", f"stages.{last_stage}"
        return {
            "first_conv": ("stem", None),
            "first_conv_bn": ("stem", None),
            "pre_head_0": (last, width),
            "pre_head_norm_0": (last, None),
            "pre_head_1": (None, last),
        }.get(layer, (None, None))
    block = ".".join(parts[:-2])
    inner, squeezed = f"{block}.mid", f"{block}.squeezed"
    out = "stem" if parts[0] == "stem" else f"stages.{parts[1]}"
    # A first block stores as many input columns as its own stage is wide; they are the previous
    # stage's channels.
    into = out
    if parts[0] == "stages" and parts[2] == "0" and layer in ("pw_conv", "shortcut_conv"):
        into = "stem" if parts[1] == "0" else f"stages.{int(parts[1]) - 1}"
    return {
        "pw_conv": (inner, into),
        "pw_bn": (inner, None),
        "dw_conv": (inner, None),
        "dw_bn": (inner, None),
        "se_conv1": (squeezed, inner),
        "se_conv2": (inner, squeezed),
        "pwl_conv": (out, inner),
        "pwl_bn": (out, None),
        "shortcut_conv": (out, into),
        "norm": (out, None),
        "qkv": (None, out),
        "proj": (out, None),
        "fc1": (f"{block}.hidden", out),
        "fc2": (out, f"{block}.hidden"),
    }.get(layer, (None, None))
