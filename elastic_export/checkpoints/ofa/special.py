"""Settings of a specialized Once-for-all network: one arch, from its tree of modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from elastic_export.checkpoints.ofa.infer import width_mult_of
from elastic_export.checkpoints.ofa.netconfig import Block, Conv, Mbv3Net, expect
from elastic_export.errors import UserError
from elastic_export.families.mobile import make_divisible
from elastic_export.families.ofa.mbv3_config import STAGES

__all__ = ["fitting_ratio", "special_mbv3"]


def special_mbv3(net: Mbv3Net) -> dict[str, Any]:
    """Settings of the one MobileNetV3 that ``net.config`` describes.

    Raises:
        UserError: It is no network of the family.
    """
    first, *blocks = net.blocks
    _expect_conv("first_conv", net.first_conv, (3, 2, True, "h_swish"))
    _expect_conv("final_expand_layer", net.final_expand_layer, (1, 1, True, "h_swish"))
    _expect_conv("feature_mix_layer", net.feature_mix_layer, (1, 1, False, "h_swish"))
    stem = net.first_conv.out_channels
    start = first.conv
    found = (start.kernel_size, start.stride, start.expand_ratio, start.act_func, start.use_se)
    expect("blocks.0", found, (3, 1, 1, "relu", False))
    expect("blocks.0.mid_channels", start.mid, stem)
    stages = _stages(blocks)
    into = stem
    for i, block in enumerate(net.blocks):
        expect(f"blocks.{i}.in_channels", block.conv.in_channels, into)
        keeps = block.conv.stride == 1 and block.conv.in_channels == block.conv.out_channels
        expect(f"a shortcut in blocks.{i}", block.shortcut is not None, keeps)
        into = block.conv.out_channels
    expect("final_expand_layer.in_channels", net.final_expand_layer.in_channels, into)
    last, mix = net.final_expand_layer.out_channels, net.feature_mix_layer.out_channels
    expect("feature_mix_layer.in_channels", net.feature_mix_layer.in_channels, last)
    expect("classifier.in_features", net.classifier.in_features, mix)
    outs = [stage[0].conv.out_channels for stage in stages]
    depth = max(len(stage) for stage in stages)
    ks = [[block.conv.kernel_size for block in stage] for stage in stages]
    e = [[_ratio(block) for block in stage] for stage in stages]
    arch: dict[str, list[Any]] = {
        "ks": [k for row in ks for k in (*row, *[row[-1]] * (depth - len(row)))],
        "e": [x for row in e for x in (*row, *[row[-1]] * (depth - len(row)))],
        "d": [len(stage) for stage in stages],
    }
    return {
        "in_chans": net.first_conv.in_channels,
        "num_classes": net.classifier.out_features,
        "width_mult": width_mult_of((stem, start.out_channels, *outs, last, mix)),
        "ks_list": sorted(set(arch["ks"])),
        "expand_ratio_list": sorted(set(arch["e"])),
        "depth_list": sorted(set(arch["d"])),
        "bn_eps": net.bn.eps,
        "arch": arch,
    }


def _expect_conv(where: str, conv: Conv, wanted: tuple[int, int, bool, str]) -> None:
    found = (conv.kernel_size, conv.stride, conv.use_bn, conv.act_func)
    expect(f"{where} (kernel_size, stride, use_bn, act_func)", found, wanted)


def _stages(blocks: Sequence[Block]) -> list[list[Block]]:
    """Part the blocks into stages: one begins with a stride or a change of squeeze-and-excite."""
    stages: list[list[Block]] = []
    for i, block in enumerate(blocks, 1):
        starts = block.conv.stride != 1 or block.conv.use_se != blocks[i - 2].conv.use_se
        if starts or not stages:
            stages.append([])
        if len(stages) > len(STAGES):
            break
        stride, act, squeeze = STAGES[len(stages) - 1]
        conv = block.conv
        wanted = (1 if stages[-1] else stride, act, squeeze)
        expect(
            f"blocks.{i} (stride, act_func, use_se)",
            (conv.stride, conv.act_func, conv.use_se),
            wanted,
        )
        if stages[-1]:
            expect(f"blocks.{i}.out_channels", conv.out_channels, stages[-1][0].conv.out_channels)
        stages[-1].append(block)
    expect("the number of stages", len(stages), len(STAGES))
    return stages


def _ratio(block: Block) -> float:
    conv = block.conv
    if conv.expand_ratio == 1:
        raise UserError(
            "net.config has expand_ratio 1 in a block that is not the first.",
            "Only networks that the official Once-for-all supernets contain are read.",
        )
    return fitting_ratio(conv.expand_ratio, conv.in_channels, conv.mid, "block")


def fitting_ratio(ratio: float, width: int, mid: int, where: str) -> float:
    """The expansion that gives ``mid`` inner channels: the one written, or the exact quotient.

    Raises:
        UserError: None does, because the inner width is no multiple of 8.
    """
    rule: Callable[[float], int] = lambda x: make_divisible(round(width * x))  # noqa: E731
    for candidate in (ratio, mid / width):
        if rule(candidate) == mid:
            return candidate
    raise UserError(
        f"net.config has {mid} inner channels in a {where} of {width}, which is no multiple of 8.",
        "Only networks that the official Once-for-all supernets contain are read.",
    )
