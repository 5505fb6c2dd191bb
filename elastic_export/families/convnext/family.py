"""ConvNeXt V1 and V2: depth and width of each stage, MLP ratio and N:M of each block.

Plain modules have timm's parameter names and compute what timm's ``ConvNeXt`` computes (Liu et al.,
arXiv 2201.03545; V2 with its global response norm: Woo et al., arXiv 2301.00808). A narrower
descendant's response norm averages over its own channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from elastic_export.elastic.family import Dim, Layout
from elastic_export.elastic.skeleton import on_meta
from elastic_export.errors import UserError
from elastic_export.families.base import ImageFamily
from elastic_export.families.convnext.config import LINEARS, ConvNextConfig, ConvNextStage, hidden
from elastic_export.families.convnext.module import PlainConvNext
from elastic_export.families.patterns import MacSum
from elastic_export.families.registry import register
from elastic_export.families.vit.config import ROUNDING
from elastic_export.space import Axis, Costs, Space, Spec

__all__ = ["ConvNext", "ConvNextConfig", "ConvNextStage", "PlainConvNext"]


@register
class ConvNext(ImageFamily):
    """The family ``convnext``."""

    name = "convnext"
    Config = ConvNextConfig
    marks = (
        "stem.0.weight",
        "stages.0.blocks.0.conv_dw.weight",
        "head.norm.weight",
        "head.fc.weight",
    )

    def space(self, config: ConvNextConfig) -> Space:
        """For each stage width and depth, for each block MLP ratio and two patterns."""
        axes = []
        for s, stage in enumerate(config.stages):
            depth = f"stages.{s}.depth"
            axes += [Axis(f"stages.{s}.width", stage.width), Axis(depth, stage.depth)]
            for b in range(max(stage.depth)):
                block = f"stages.{s}.blocks.{b}"
                axes.append(Axis(f"{block}.mlp_ratio", stage.mlp_ratio, (depth, b)))
                for name in LINEARS:
                    patterns = config.patterns_of(f"{block}.{name}")
                    if patterns != ("dense",):
                        axes.append(Axis(f"{block}.{name}.nm", patterns, (depth, b)))
        return Space(axes)

    def skeleton(self, config: ConvNextConfig, spec: Spec) -> PlainConvNext:
        """The plain ConvNeXt of a spec on meta."""
        widths = [int(spec[f"stages.{s}.width"]) for s in range(len(config.stages))]
        inner = [
            [
                hidden(width, float(spec[f"stages.{s}.blocks.{b}.mlp_ratio"]))
                for b in range(int(spec[f"stages.{s}.depth"]))
            ]
            for s, width in enumerate(widths)
        ]
        with on_meta():
            return PlainConvNext(config, widths, inner).eval()

    def layout(self, config: ConvNextConfig) -> Layout:
        """One group for each stage's width, and one for each block's hidden layer."""
        layout: dict[str, tuple[Dim | None, ...]] = {}

        def vectors(name: str, dim: Dim | None) -> None:
            layout[f"{name}.weight"] = layout[f"{name}.bias"] = (dim,)

        def weights(name: str, *dims: Dim | None) -> None:
            layout[f"{name}.weight"] = dims
            layout[f"{name}.bias"] = dims[:1]

        into = Dim("stages.0.width")
        weights("stem.0", into, None, None, None)
        vectors("stem.1", into)
        for s, stage in enumerate(config.stages):
            width = Dim(f"stages.{s}.width")
            if s:
                vectors(f"stages.{s}.downsample.0", into)
                weights(f"stages.{s}.downsample.1", width, into, None, None)
            for b in range(max(stage.depth)):
                block = f"stages.{s}.blocks.{b}"
                inner = Dim(f"{block}.hidden")
                weights(f"{block}.conv_dw", width, None, None, None)
                vectors(f"{block}.norm", width)
                weights(f"{block}.mlp.fc1", inner, width)
                vectors(f"{block}.mlp.grn", inner)
                weights(f"{block}.mlp.fc2", width, inner)
                layout[f"{block}.gamma"] = (width,)
            into = width
        vectors("head.norm", into)
        weights("head.fc", None, into)
        return layout

    def costs(self, config: ConvNextConfig, space: Space, genes: np.ndarray) -> Costs:
        """Sum over blocks; every individual of the population at once."""

        def values(name: str, kind: type) -> np.ndarray:
            return space.values(genes, name).astype(kind)

        into = values("stages.0.width", np.int64)
        pixels = config.in_chans * config.patch_size**2
        fixed = config.sides[0] ** 2 * pixels * into
        macs = MacSum(space, genes)
        macs.add(fixed)
        params = into * (pixels + 1 + 2)
        for s, (stage, side) in enumerate(zip(config.stages, config.sides, strict=True)):
            width = values(f"stages.{s}.width", np.int64)
            depth = values(f"stages.{s}.depth", np.int64)
            if s:
                macs.add(side**2 * 4 * into * width)
                params = params + 2 * into + 4 * into * width + width
            for b in range(max(stage.depth)):
                live = (depth > b).astype(np.int64)
                block = f"stages.{s}.blocks.{b}"
                inner = (width * values(f"{block}.mlp_ratio", np.float64) + ROUNDING).astype(int)
                taps = config.kernel_size**2 * width
                macs.add(live * side**2 * taps)
                for name in LINEARS:
                    macs.add_layer(f"{block}.{name}", live * side**2 * width * inner)
                params = params + live * (
                    taps
                    + width * (4 + config.layer_scale)
                    + 2 * width * inner
                    + inner * (1 + 2 * config.grn)
                )
            into = width
        macs.add(into * config.num_classes)
        params = params + 2 * into + (into + 1) * config.num_classes
        return macs.costs(params)

    def initialise(
        self, config: ConvNextConfig, module: nn.Module, generator: torch.Generator
    ) -> None:
        """Clipped normal weights, zero biases, small layer scales, as in the paper."""
        with torch.no_grad():
            for name, tensor in module.named_parameters():
                if tensor.dim() >= 2:
                    tensor.normal_(0.0, 0.02, generator=generator).clamp_(-0.04, 0.04)
                elif name.endswith(".gamma"):
                    tensor.fill_(1e-6)
                else:
                    ones = name.endswith(".weight") and not name.endswith("grn.weight")
                    tensor.fill_(1.0 if ones else 0.0)

    def recognise(
        self, shapes: Mapping[str, tuple[int, ...]], hints: Mapping[str, Any]
    ) -> ConvNextConfig:
        """Read sizes from timm's names; ``image_size`` comes from hints."""
        for name in self.marks:
            if name not in shapes:
                raise UserError(
                    f"This is not a ConvNeXt checkpoint with timm's names: {name} is missing.",
                    "Check model.family; inspect the file to see what it holds.",
                )
        first = "stages.0.blocks.0"
        stages = []
        for s in sorted({int(m[1]) for k in shapes if (m := re.match(r"stages\.(\d+)\.", k))}):
            blocks = {
                int(m[1]) for k in shapes if (m := re.match(rf"stages\.{s}\.blocks\.(\d+)\.", k))
            }
            fc1 = shapes.get(f"stages.{s}.blocks.0.mlp.fc1.weight", ())
            if len(fc1) != 2:
                raise UserError(
                    f"Stage {s} of this ConvNeXt has no pointwise linear layers (mlp.fc1).",
                    "Only ConvNeXt networks with timm's block can be imported as this family.",
                )
            ratio = fc1[0] / fc1[1]
            stages.append({"depth": (max(blocks) + 1,), "width": (fc1[1],), "mlp_ratio": (ratio,)})
        _, in_chans, patch, _ = shapes["stem.0.weight"]
        found = {
            "in_chans": in_chans,
            "num_classes": shapes["head.fc.weight"][0],
            "patch_size": patch,
            "kernel_size": shapes[f"{first}.conv_dw.weight"][-1],
            "stages": tuple(stages),
            "layer_scale": f"{first}.gamma" in shapes,
            "grn": f"{first}.mlp.grn.weight" in shapes,
        }
        return ConvNextConfig.model_validate({**found, **hints})
