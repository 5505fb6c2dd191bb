"""AttentiveNAS / AlphaNet: resolution, and for each stage width, depth, kernel and expansion.

Wang et al., AttentiveNAS (arXiv 2011.09011) and AlphaNet (arXiv 2102.07954), code in
facebookresearch/AttentiveNAS and facebookresearch/AlphaNet. Import only: their weights are under
CC-BY-NC. Channels are prefixes, kernels the centre of the stored ones. The BatchNorm statistics of
a supernet were never trained for any one network, so they must be estimated anew after extraction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from elastic_export.config.transform import Transform
from elastic_export.elastic.family import Dim, Layout
from elastic_export.elastic.rules import CentreCrop, Prefix, Rule
from elastic_export.elastic.skeleton import on_meta
from elastic_export.errors import UserError
from elastic_export.families.alphanet.config import AlphaNetConfig, AlphaNetStage, inner_width
from elastic_export.families.alphanet.module import EXPANSION, MobileSizes, PlainAlphaNet
from elastic_export.families.base import ImageFamily
from elastic_export.families.ofa.costs import Leaf, conv, conv_norm, linear, total
from elastic_export.families.published import published
from elastic_export.families.registry import register
from elastic_export.space import Axis, Costs, Space, Spec

__all__ = ["AlphaNet", "AlphaNetConfig", "PlainAlphaNet"]


@register
class AlphaNet(ImageFamily):
    """The family ``alphanet``."""

    name = "alphanet"
    read_by = "alphanet"
    Config = AlphaNetConfig
    marks = (
        "blocks.0.mobile_inverted_conv.depth_conv.conv.conv.weight",
        "first_conv.conv.conv.weight",
    )

    def space(self, config: AlphaNetConfig) -> Space:
        """Axes named as the systems name them: ``width`` lists stem, stages and head in order."""
        axes = [Axis("resolution", config.resolution), Axis("stem.width", config.stem)]
        for s, stage in enumerate(config.stages):
            names = ("width", "depth", "kernel_size", "expand_ratio")
            axes += [Axis(f"stages.{s}.{name}", getattr(stage, name)) for name in names]
        return Space([*axes, Axis("head.width", config.head)])

    def skeleton(self, config: AlphaNetConfig, spec: Spec) -> PlainAlphaNet:
        """The plain network of a spec on meta."""
        into = stem = int(spec["stem.width"])
        side = _halved(int(spec["resolution"]), config.stem_stride)
        stages = []
        for s, stage in enumerate(config.stages):
            out, kernel = int(spec[f"stages.{s}.width"]), int(spec[f"stages.{s}.kernel_size"])
            ratio = float(spec[f"stages.{s}.expand_ratio"])
            blocks = []
            for b in range(int(spec[f"stages.{s}.depth"])):
                inner = inner_width(round(into * ratio))
                stride = 1 if b else stage.stride
                blocks.append(
                    MobileSizes(
                        into,
                        inner,
                        out,
                        kernel,
                        stride,
                        expand=ratio != 1,
                        squeeze=inner_width(inner // 4) if stage.se else 0,
                        odd=side % 2 == 1,
                        shortcut=into != out,
                    )
                )
                into, side = out, _halved(side, stride)
            stages.append(blocks)
        with on_meta():
            return PlainAlphaNet(config, stem, stages, int(spec["head.width"])).eval()

    def stored(self, config: AlphaNetConfig) -> PlainAlphaNet:
        """The largest layers; inner widths are not rounded, and every shortcut has weights."""
        into = max(config.stem)
        stages = []
        for stage in config.stages:
            blocks = []
            for b in range(max(stage.depth)):
                inner = stage.stored_inner(into)
                blocks.append(
                    MobileSizes(
                        into,
                        inner,
                        max(stage.width),
                        max(stage.kernel_size),
                        1 if b else stage.stride,
                        expand=max(stage.expand_ratio) != 1,
                        squeeze=inner_width(inner // 4) if stage.se else 0,
                        odd=False,
                        shortcut=True,
                    )
                )
                into = max(stage.width)
            stages.append(blocks)
        with on_meta():
            return PlainAlphaNet(config, max(config.stem), stages, max(config.head)).eval()

    def layout(self, config: AlphaNetConfig) -> Layout:
        """One group for the stem, each stage's output, each block's inner channels, the head."""
        layout: dict[str, tuple[Dim | None, ...]] = {}
        last = f"stages.{len(config.stages) - 1}"
        for name, tensor in _tensors(self.stored(config)):
            part = name.rpartition(".")[0]
            out, into = _groups(part, last, config.v3_head)
            dims = [out, into, None, None][: tensor.dim()]
            depthwise = part.endswith("conv_dw")
            layout[name] = (out, None, None, None) if depthwise else tuple(dims)
        return layout

    def rules(self, config: AlphaNetConfig, spec: Spec, plain: nn.Module) -> dict[str, Rule]:
        """Prefixes, and the centre of depthwise kernels."""
        rules: dict[str, Rule] = {}
        for name, tensor in _tensors(plain):
            if name.endswith("conv_dw.weight"):
                rules[name] = CentreCrop(name, tensor.shape[0], tensor.shape[-1])
            else:
                rules[name] = Prefix(name, tuple(tensor.shape))
        return rules

    def costs(self, config: AlphaNetConfig, space: Space, genes: np.ndarray) -> Costs:
        """Sum over layers; every individual of the population at once."""
        return total(_leaves(config, space, genes), len(genes))

    def preprocess(self, config: Any, spec: Spec, transform: Transform) -> Transform:
        """Crop as ever, and resize to the resolution last, as the systems do in the network."""
        size = int(spec["resolution"])
        return transform.model_copy(update={"final_size": None if size == transform.size else size})

    def initialise(
        self, config: AlphaNetConfig, module: nn.Module, generator: torch.Generator
    ) -> None:
        """He normal (fan out) for convolutions; each block's last norm starts at zero."""
        with torch.no_grad():
            for name, tensor in _tensors(module):
                if tensor.dim() == 4:
                    fan_out = tensor.shape[0] * tensor.shape[2] * tensor.shape[3]
                    if name.endswith("conv_dw.weight"):
                        fan_out = tensor.shape[2] * tensor.shape[3]
                    tensor.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
                elif name == "classifier.weight":
                    tensor.normal_(0.0, 0.01, generator=generator)
                elif name.endswith(("weight", "running_var")):
                    tensor.fill_(0.0 if name.endswith("bn3.weight") else 1.0)
                else:
                    tensor.zero_()

    def named_specs(self, config: Any) -> dict[str, Mapping[str, Any]]:
        """The published networks that this space offers, and the config's."""
        space = self.space(config)
        known = published(self.name).items()
        return {name: genes for name, genes in known if _fits(config, space, genes)} | config.specs


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _halved(side: int, stride: int) -> int:
    return (side + stride - 1) // stride


def _groups(part: str, last: str, v3_head: bool) -> tuple[Dim | None, Dim | None]:
    """Coupling groups of a layer's outputs and inputs."""
    whole = {
        "conv_stem": (Dim("stem"), None),
        "bn_stem": (Dim("stem"), None),
        "conv_head": (Dim("wide" if v3_head else "head"), Dim(f"{last}.out")),
        "bn_head": (Dim("wide" if v3_head else "head"), None),
        "conv_mix": (Dim("head"), Dim("wide")),
        "classifier": (None, Dim("head")),
    }
    if part in whole:
        return whole[part]
    _, s, b, layer = part.split(".", 3)
    before = f"stages.{s}.out" if int(b) else f"stages.{int(s) - 1}.out"
    into = Dim("stem" if s == b == "0" else before)
    inner, squeeze = Dim(f"stages.{s}.{b}.inner"), Dim(f"stages.{s}.{b}.squeeze")
    out = Dim(f"stages.{s}.out")
    return {
        "conv_pw": (inner, into),
        "conv_dw": (inner, None),
        "se.conv_reduce": (squeeze, inner),
        "se.conv_expand": (inner, squeeze),
        "conv_pwl": (out, inner),
        "bn3": (out, None),
        "shortcut": (out, into),
    }.get(layer, (inner, None))


def _leaves(config: AlphaNetConfig, space: Space, genes: np.ndarray) -> Iterator[Leaf]:
    def values(name: str) -> np.ndarray:
        return space.values(genes, name)

    into = values("stem.width").astype(np.int64)
    side = -(-values("resolution").astype(np.int64) // config.stem_stride)
    yield from conv_norm(config.in_chans, into, side, 3)
    for s, stage in enumerate(config.stages):
        out = values(f"stages.{s}.width").astype(np.int64)
        for b in range(max(stage.depth)):
            live = (values(f"stages.{s}.depth") > b).astype(np.int64)
            stride = 1 if b else stage.stride
            yield from _block(stage, f"stages.{s}", (into, out), side, stride, live, values)
            into, side = out, -(-side // stride)
    head = values("head.width").astype(np.int64)
    if config.v3_head:
        yield from conv_norm(into, EXPANSION * into, side, 1)
        yield conv(EXPANSION * into, head, 1, 1)
    else:
        yield from conv_norm(into, head, side, 1)
    yield linear(head, config.num_classes)


def _block(
    stage: AlphaNetStage,
    name: str,
    widths: tuple[np.ndarray, np.ndarray],
    side: np.ndarray,
    stride: int,
    live: np.ndarray,
    values: Any,
) -> Iterator[Leaf]:
    into, out = widths
    ratio = values(f"{name}.expand_ratio").astype(np.float64)
    inner = inner_width(np.rint(into * ratio).astype(np.int64))
    kernel = values(f"{name}.kernel_size").astype(np.int64)
    after = -(-side // stride)
    yield from conv_norm(into, inner, side, 1, live * (ratio != 1))
    yield from conv_norm(1, inner, after, kernel, live)
    if stage.se:
        squeeze = inner_width(inner // 4)
        yield conv(inner, squeeze, 1, 1, live, bias=True)
        yield conv(squeeze, inner, 1, 1, live, bias=True)
    yield from conv_norm(inner, out, after, 1, live)
    yield conv(into, out, after, 1, live * (into != out))


def _fits(config: AlphaNetConfig, space: Space, genes: Mapping[str, Any]) -> bool:
    if len(genes["depth"]) != len(config.stages):
        return False
    try:
        space.canonical(genes)
    except UserError:
        return False
    return True
