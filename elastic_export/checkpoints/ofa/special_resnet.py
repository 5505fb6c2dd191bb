"""Settings of a specialized Once-for-all ResNet50D: one arch, from its tree of modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elastic_export.checkpoints.ofa.netconfig import Bottleneck, Conv, ResNet50D, StemBlock, expect
from elastic_export.checkpoints.ofa.special import fitting_ratio
from elastic_export.errors import UserError
from elastic_export.families.mobile import make_divisible
from elastic_export.families.ofa.resnet50d_config import (
    BASE_DEPTHS,
    BASE_STEM,
    BASE_WIDTHS,
    OfaResNet50DConfig,
)

__all__ = ["special_resnet"]


def special_resnet(net: ResNet50D) -> dict[str, Any]:
    """Settings of the one ResNet50D that ``net.config`` describes.

    Raises:
        UserError: It is no network of the family.
    """
    inner, stem = _stem(net)
    stages = _stages(net.blocks)
    into = stem
    for i, block in enumerate(net.blocks):
        expect(f"blocks.{i}.in_channels", block.in_channels, into)
        into = block.out_channels
    expect("classifier.in_features", net.classifier.in_features, into)
    for s, (stage, base) in enumerate(zip(stages, BASE_DEPTHS, strict=True), 1):
        expect(f"at least {base} blocks in stage {s}", len(stage) >= base, True)
        first = stage[0]
        bare = first.stride == 1 and first.in_channels == first.out_channels
        expect(f"a bare shortcut at the start of stage {s}", bare, False)
    more = [len(stage) - base for stage, base in zip(stages, BASE_DEPTHS, strict=True)]
    # The published choices stay in, so that the stem's residual block can be told by its depth.
    depths = sorted({*OfaResNet50DConfig.model_fields["depth_list"].default, *more})
    factors = [
        _factor(inner, lambda x: make_divisible(make_divisible(BASE_STEM * x) // 2), BASE_STEM / 2),
        _factor(stem, lambda x: make_divisible(BASE_STEM * x), BASE_STEM),
        *(
            _factor(stage[0].out_channels, lambda x, base=base: make_divisible(base * x), base)
            for stage, base in zip(stages, BASE_WIDTHS, strict=True)
        ),
    ]
    listed = sorted(set(factors))
    ratios: list[float] = []
    for stage, base in zip(stages, BASE_DEPTHS, strict=True):
        row = [_ratio(block) for block in stage]
        ratios += [*row, *[row[-1]] * (base + depths[-1] - len(row))]
    return {
        "in_chans": _first(net).in_channels,
        "num_classes": net.classifier.out_features,
        "width_mult_list": listed,
        "expand_ratio_list": sorted(set(ratios)),
        "depth_list": depths,
        "bn_eps": net.bn.eps,
        "arch": {
            "d": [depths[-1] if len(net.input_stem) > 2 else depths[0], *more],
            "e": ratios,
            "w": [listed.index(factor) for factor in factors],
        },
    }


def _first(net: ResNet50D) -> Conv:
    first = net.input_stem[0]
    if isinstance(first, StemBlock):
        expect("input_stem.0", first.name, "ConvLayer")
    assert isinstance(first, Conv)
    return first


def _stem(net: ResNet50D) -> tuple[int, int]:
    """Check the stem; its inner and outer width."""
    kinds = [isinstance(layer, StemBlock) for layer in net.input_stem]
    if kinds not in ([False, False], [False, True, False]):
        raise UserError(
            "net.config has an input_stem that is not of two convolutions, with or without a "
            "residual one between them.",
            "Only ResNet50D networks are read; ResNet50 has another stem.",
        )
    layers = [layer.conv if isinstance(layer, StemBlock) else layer for layer in net.input_stem]
    inner = layers[0].out_channels
    for i, layer in enumerate(layers):
        found = (layer.kernel_size, layer.stride, layer.use_bn, layer.act_func)
        where = f"input_stem.{i} (kernel_size, stride, use_bn, act_func)"
        expect(where, found, (3, 1 if i else 2, True, "relu"))
        if i:
            expect(f"input_stem.{i}.in_channels", layer.in_channels, inner)
        if kinds[i]:
            expect(f"input_stem.{i}.out_channels", layer.out_channels, inner)
    stem = layers[-1].out_channels
    return inner, stem


def _stages(blocks: Sequence[Bottleneck]) -> list[list[Bottleneck]]:
    """Part the blocks into stages: every one but the first begins with a stride."""
    stages: list[list[Bottleneck]] = []
    for i, block in enumerate(blocks):
        if block.stride != 1 or not stages:
            stages.append([])
        wanted = 1 if stages[-1] or len(stages) == 1 else 2
        expect(f"blocks.{i}.stride", block.stride, wanted)
        if stages[-1]:
            expect(f"blocks.{i}.out_channels", block.out_channels, stages[-1][0].out_channels)
        stages[-1].append(block)
    expect("the number of stages", len(stages), len(BASE_DEPTHS))
    return stages


def _factor(width: int, rule: Any, base: float) -> float:
    """A width multiplier that gives a width: a published one, or the exact quotient."""
    for factor in (*OfaResNet50DConfig.model_fields["width_mult_list"].default, width / base):
        if rule(factor) == width:
            return float(factor)
    raise UserError(
        f"net.config has a width of {width}, which is no multiple of 8.",
        "Only networks that the official Once-for-all supernets contain are read.",
    )


def _ratio(block: Bottleneck) -> float:
    written = make_divisible(block.mid_channels or round(block.out_channels * block.expand_ratio))
    return fitting_ratio(block.expand_ratio, block.out_channels, written, "block")
