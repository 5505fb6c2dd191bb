"""Once-for-all MobileNetV3: kernel and expansion of each block, depth of each stage, input size.

Source: Cai et al., arXiv 1908.09791 (mit-han-lab/once-for-all). Plain modules have the parameter
names and the structure of timm's ``MobileNetV3``. Axes end in the official names, so
``{"ks": [...], "e": [...], "d": [...]}`` is a spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from elastic_export.elastic.family import Dim, Layout
from elastic_export.elastic.rules import CentreCrop, Rule
from elastic_export.elastic.rules_kernels import KernelMap
from elastic_export.elastic.skeleton import on_meta
from elastic_export.families.base import ImageFamily
from elastic_export.families.ofa.config import bn_layout
from elastic_export.families.ofa.costs import Leaf, conv, conv_norm, half, linear, total
from elastic_export.families.ofa.mbv3_config import STAGES, OfaMbv3Config, arch_choices
from elastic_export.families.ofa.mbv3_module import PlainMbv3, squeezed
from elastic_export.families.registry import register
from elastic_export.space import Axis, Costs, Space, Spec

__all__ = ["OfaMbv3", "OfaMbv3Config", "PlainMbv3"]

_LAST = len(STAGES) + 1


@register
class OfaMbv3(ImageFamily):
    """The family ``ofa_mbv3``."""

    name = "ofa_mbv3"
    read_by = "ofa"
    bn_variance = "biased"
    Config = OfaMbv3Config
    marks = ("final_expand_layer.conv.weight", "feature_mix_layer.conv.weight")

    def space(self, config: OfaMbv3Config) -> Space:
        """Axes ``resolution``, then each stage's ``d`` and each block's ``ks`` and ``e``."""
        axes = [Axis("resolution", config.resolution)]
        for s, b in _blocks(config):
            depth = f"blocks.{s}.d"
            if not b:
                axes.append(Axis(depth, config.depths(s)))
            axes.append(Axis(f"blocks.{s}.{b}.ks", config.kernels(s, b), (depth, b)))
            axes.append(Axis(f"blocks.{s}.{b}.e", config.expansions(s, b), (depth, b)))
        return Space(axes)

    def from_arch(self, config: OfaMbv3Config, arch: Mapping[str, Any]) -> Spec:
        """The spec of an arch in the official encoding; see :func:`arch_choices`."""
        return arch_choices(config, self.space(config), arch)

    def skeleton(self, config: OfaMbv3Config, spec: Spec) -> PlainMbv3:
        """The plain network of a spec on meta."""
        into = config.widths[1]
        stages: list[list[tuple[int, int]]] = []
        for s, out in enumerate(config.widths[2:-2], 1):
            stages.append([])
            for b in range(int(spec[f"blocks.{s}.d"])):
                mid = config.mid(into, float(spec[f"blocks.{s}.{b}.e"]))
                stages[-1].append((int(spec[f"blocks.{s}.{b}.ks"]), mid))
                into = out
        with on_meta():
            return PlainMbv3(config, stages).eval()

    def stored(self, config: OfaMbv3Config) -> nn.Module:
        """The largest network, and beside each depthwise kernel its matrices."""
        module = self.skeleton(config, self.space(config).max())
        for s, b in _blocks(config):
            owner = module.get_submodule(f"blocks.{s}.{b}.conv_dw")
            for name, size in _steps(config, config.kernels(s, b), 0):
                matrix = nn.Parameter(torch.empty(size**2, size**2, device="meta"))
                owner.register_parameter(name, matrix)
        return module

    def rules(self, config: OfaMbv3Config, spec: Spec, plain: nn.Module) -> dict[str, Rule]:
        """Prefixes; a kernel smaller than the stored one is transformed."""
        rules = super().rules(config, spec, plain)
        for s, b in _blocks(config):
            name, choices = f"blocks.{s}.{b}.conv_dw", config.kernels(s, b)
            kernel = spec.get(f"blocks.{s}.{b}.ks", max(choices))
            if kernel == max(choices):
                continue
            channels = plain.get_parameter(f"{name}.weight").shape[0]
            steps = _steps(config, choices, int(kernel))
            rules[f"{name}.weight"] = (
                KernelMap(f"{name}.weight", channels, tuple((f"{name}.{m}", k) for m, k in steps))
                if steps
                else CentreCrop(f"{name}.weight", channels, int(kernel))
            )
        return rules

    def layout(self, config: OfaMbv3Config) -> Layout:
        """One group for each stage's output and each block's inner channels."""
        stem = Dim("stem")
        layout: dict[str, tuple[Dim | None, ...]] = {
            "conv_stem.weight": (stem, None, None, None),
            **bn_layout("bn1", stem),
        }
        widths, into = config.widths, stem
        layout |= _separable("blocks.0.0", stem, _joined(widths[0], widths[1], 1, stem, 0))
        into = _joined(widths[0], widths[1], 1, stem, 0)
        for s, b in _blocks(config):
            if not b:
                out = _joined(widths[s], widths[s + 1], STAGES[s - 1][0], into, s)
            block, mid = f"blocks.{s}.{b}", Dim(f"blocks.{s}.{b}.mid")
            if config.expands:
                layout |= {
                    f"{block}.conv_pw.weight": (mid, into, None, None),
                    **bn_layout(f"{block}.bn1", mid),
                    f"{block}.conv_dw.weight": (mid, None, None, None),
                    **bn_layout(f"{block}.bn2", mid),
                    f"{block}.conv_pwl.weight": (out, mid, None, None),
                    **bn_layout(f"{block}.bn3", out),
                }
            else:
                mid = into
                layout |= _separable(block, into, out)
            for name, _ in _steps(config, config.kernels(s, b), 0):
                layout[f"{block}.conv_dw.{name}"] = (None, None)
            if STAGES[s - 1][2]:
                inner = Dim(f"{block}.se")
                layout |= {
                    f"{block}.se.conv_reduce.weight": (inner, mid, None, None),
                    f"{block}.se.conv_reduce.bias": (inner,),
                    f"{block}.se.conv_expand.weight": (mid, inner, None, None),
                    f"{block}.se.conv_expand.bias": (mid,),
                }
            into = out
        last, mix = Dim("last"), Dim("mix")
        return layout | {
            f"blocks.{_LAST}.0.conv.weight": (last, into, None, None),
            **bn_layout(f"blocks.{_LAST}.0.bn1", last),
            "conv_head.weight": (mix, last, None, None),
            "classifier.weight": (None, mix),
            "classifier.bias": (None,),
        }

    def costs(self, config: OfaMbv3Config, space: Space, genes: np.ndarray) -> Costs:
        """Sum over layers."""
        return total(self.leaves(config, space, genes), len(genes))

    def leaves(self, config: OfaMbv3Config, space: Space, genes: np.ndarray) -> Iterator[Leaf]:
        """MACs and parameters of every layer, in the order of the official module."""
        first, into, *outs, last, mix = config.widths
        side = half(space.values(genes, "resolution").astype(np.int64))
        yield from conv_norm(config.in_chans, first, side, 3)
        yield from conv_norm(1, first, side, 3)
        yield from conv_norm(first, into, side, 1)
        for s, b in _blocks(config):
            before, out = side, outs[s - 1]
            side = half(side) if STAGES[s - 1][0] == 2 and not b else side
            live = (space.values(genes, f"blocks.{s}.d") > b).astype(np.int64)
            kernel = space.values(genes, f"blocks.{s}.{b}.ks").astype(np.int64)
            mids = np.array([config.mid(into, e) for e in config.expansions(s, b)])
            mid = mids[genes[:, space.index[f"blocks.{s}.{b}.e"]]]
            if config.expands:
                yield from conv_norm(into, mid, before, 1, live)
            yield from conv_norm(1, mid, side, kernel, live)
            if STAGES[s - 1][2]:
                inners = np.array([squeezed(int(m)) for m in mids])
                inner = inners[genes[:, space.index[f"blocks.{s}.{b}.e"]]]
                yield conv(mid, inner, 1, 1, live, bias=True)
                yield conv(inner, mid, 1, 1, live, bias=True)
            yield from conv_norm(mid, out, side, 1, live)
            into = out
        yield from conv_norm(into, last, side, 1)
        yield conv(last, mix, 1, 1)
        yield linear(mix, config.num_classes)

    def initialise(
        self, config: OfaMbv3Config, module: nn.Module, generator: torch.Generator
    ) -> None:
        """He normal (fan out) for convolutions; the kernels' matrices start as identities."""
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if name.endswith("_matrix"):
                    tensor.copy_(torch.eye(len(tensor)))
                elif tensor.dim() == 4:
                    groups = tensor.shape[0] if ".conv_dw." in name else 1
                    fan_out = tensor.shape[0] * tensor.shape[2] * tensor.shape[3] // groups
                    tensor.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
                elif name == "classifier.weight":
                    tensor.normal_(0.0, 0.01, generator=generator)
                elif name.endswith(("weight", "running_var")):
                    tensor.fill_(1.0)
                else:
                    tensor.zero_()


def _blocks(config: OfaMbv3Config) -> Iterator[tuple[int, int]]:
    """Stage, from 1, and number of every elastic block of the deepest network."""
    for s in range(1, len(STAGES) + 1):
        for b in range(max(config.depths(s))):
            yield s, b


def _steps(config: OfaMbv3Config, choices: tuple[int, ...], smallest: int) -> list[tuple[str, int]]:
    """Matrix name and size of each step from the largest kernel down to ``smallest``."""
    if not config.kernel_transform:
        return []
    down = sorted(choices, reverse=True)
    pairs = pairwise(down)
    return [(f"{large}to{small}_matrix", small) for large, small in pairs if small >= smallest]


def _joined(into: int, out: int, stride: int, before: Dim, stage: int) -> Dim:
    """The group of a stage's output; that of its input where a shortcut adds them."""
    return before if stride == 1 and into == out else Dim(f"blocks.{stage}.out")


def _separable(block: str, into: Dim, out: Dim) -> dict[str, tuple[Dim | None, ...]]:
    return {
        f"{block}.conv_dw.weight": (into, None, None, None),
        **bn_layout(f"{block}.bn1", into),
        f"{block}.conv_pw.weight": (out, into, None, None),
        **bn_layout(f"{block}.bn2", out),
    }
