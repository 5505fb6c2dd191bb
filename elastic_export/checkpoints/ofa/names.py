"""Names of Once-for-all checkpoints: from ours to the official ones, and their older spellings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from elastic_export.errors import UserError

__all__ = ["canonical_names", "is_supernet", "mbv3_name", "resnet_name"]

_EXPANDED = {
    "conv_pw": "inverted_bottleneck.conv",
    "bn1": "inverted_bottleneck.bn",
    "conv_dw": "depth_conv.conv",
    "bn2": "depth_conv.bn",
    "se.conv_reduce": "depth_conv.se.fc.reduce",
    "se.conv_expand": "depth_conv.se.fc.expand",
    "conv_pwl": "point_linear.conv",
    "bn3": "point_linear.bn",
}
_SEPARABLE = {
    "conv_dw": "depth_conv.conv",
    "bn1": "depth_conv.bn",
    "se.conv_reduce": "depth_conv.se.fc.reduce",
    "se.conv_expand": "depth_conv.se.fc.expand",
    "conv_pw": "point_linear.conv",
    "bn2": "point_linear.bn",
}
_MBV3 = {
    "conv_stem": "first_conv.conv",
    "bn1": "first_conv.bn",
    "blocks.6.0.conv": "final_expand_layer.conv",
    "blocks.6.0.bn1": "final_expand_layer.bn",
    "conv_head": "feature_mix_layer.conv",
    "classifier": "classifier.linear",
}
_BOTTLENECK = {
    **{f"conv{i}": f"conv{i}.conv" for i in (1, 2, 3)},
    **{f"bn{i}": f"conv{i}.bn" for i in (1, 2, 3)},
    "downsample.1": "downsample.conv",
    "downsample.2": "downsample.bn",
}


def canonical_names(keys: Iterable[str], path: Path) -> dict[str, str]:
    """The names of a specialized network for those of any checkpoint.

    Old files say ``mobile_inverted_conv`` for ``conv``; elastic layers of a supernet wrap an
    ordinary one, so that ``conv``, ``bn`` and ``linear`` stand twice.

    Returns:
        Canonical name to the key of the file.

    Raises:
        UserError: Two keys mean the same tensor.
    """
    keys = list(keys)
    wrapped = is_supernet(keys)
    found: dict[str, str] = {}
    for key in keys:
        name = re.sub(r"^(blocks\.\d+)\.mobile_inverted_conv\.", r"\1.conv.", key)
        name = re.sub(r"\.(bn|linear)\.\1\.", r".\1.", name)
        if wrapped or not name.startswith("input_stem."):
            name = re.sub(r"\.conv\.conv\.weight$", ".conv.weight", name)
        if name in found:
            raise UserError(
                f"{path} holds both {found[name]} and {key}, which are the same tensor.",
                "Use a checkpoint of one network.",
            )
        found[name] = key
    return found


def is_supernet(keys: Iterable[str]) -> bool:
    """Whether the names are those of elastic layers, or kernels have matrices beside them."""
    wrapped = r"blocks\.\d+\..*(\.conv\.conv\.weight|\.bn\.bn\.weight|to\d+_matrix)"
    return any(re.fullmatch(wrapped, key) for key in keys)


def mbv3_name(name: str, depths: Sequence[int], expands: bool) -> str:
    """The canonical official name of one of our MobileNetV3 tensors.

    Args:
        name: Such as ``blocks.1.0.conv_dw.weight``.
        depths: Blocks of each of the five stages.
        expands: Whether the blocks of the stages begin with an expansion.
    """
    owner, _, leaf = name.rpartition(".")
    if owner in _MBV3:
        return f"{_MBV3[owner]}.{leaf}"
    _, stage, block, part = owner.split(".", 3)
    number = 1 + sum(depths[: int(stage) - 1]) + int(block) if int(stage) else 0
    parts: Mapping[str, str] = _EXPANDED if expands and int(stage) else _SEPARABLE
    return f"blocks.{number}.conv.{parts[part]}.{leaf}"


def resnet_name(name: str, depths: Sequence[int], keeps_stem: bool) -> str:
    """The canonical official name of one of our ResNet50D tensors.

    Args:
        name: Such as ``layer1.0.conv1.weight``.
        depths: Blocks of each of the four stages.
        keeps_stem: Whether the stem has its residual block.
    """
    owner, _, leaf = name.rpartition(".")
    if owner == "fc":
        return f"classifier.linear.{leaf}"
    first, second, part = owner.split(".", 2)
    if first == "stem":
        residual = {"0": "0", "1": "1.conv", "2": "2" if keeps_stem else "1"}
        return f"input_stem.{residual[second]}.{part}.{leaf}"
    stage = int(first.removeprefix("layer"))
    number = sum(depths[: stage - 1]) + int(second)
    return f"blocks.{number}.{_BOTTLENECK[part]}.{leaf}"
