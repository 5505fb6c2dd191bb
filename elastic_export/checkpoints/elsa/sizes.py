"""Sizes of a network ELSA trained: read from shapes, held against its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from elastic_export.checkpoints.elsa.config import section_of
from elastic_export.errors import UserError
from elastic_export.families.registry import get_family
from elastic_export.families.swin.config import SwinConfig

__all__ = ["sizes_of"]

Shapes = Mapping[str, tuple[int, ...]]

_NOT_IN_FILES = ("init_std", "pos_std", "norm_eps")
_DEFAULT_SIZE = 224
_DEIT = {
    "PATCH_SIZE": "patch_size",
    "IN_CHANS": "in_chans",
    "EMBED_DIM": "width",
    "DEPTH": "depth",
    "NUM_HEADS": "heads",
    "QKV_BIAS": "qkv_bias",
}
_SWIN = {
    "PATCH_SIZE": "patch_size",
    "IN_CHANS": "in_chans",
    "EMBED_DIM": "width",
    "QKV_BIAS": "qkv_bias",
    "APE": "ape",
    "PATCH_NORM": "patch_norm",
}


def sizes_of(
    config: Mapping[str, Any], family: str, shapes: Shapes, ours: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Family settings without patterns and specs, and notes on what was assumed.

    Args:
        config: ELSA's configuration; may be empty.
        family: ``vit`` or ``swin``.
        shapes: Every tensor of the file.
        ours: Family settings that the user gives.

    Raises:
        UserError: Something is missing, or contradicts the file.
    """
    sizes, notes = (_deit if family == "vit" else _swin)(config, shapes, ours)
    for key, value in ours.items():
        known = sizes.get(key)
        listed = isinstance(known, list) and not isinstance(value, list | tuple)
        same = known == ([value] if listed else list(value) if isinstance(value, tuple) else value)
        if key in sizes and key not in _NOT_IN_FILES and not same:
            raise UserError(
                f"{key} is {value} in the settings, but the checkpoint has {known}.",
                "Leave the setting out, or give another checkpoint.",
            )
        sizes.setdefault(key, value)
        if key in _NOT_IN_FILES:
            sizes[key] = value
    return sizes, notes


def _deit(
    config: Mapping[str, Any], shapes: Shapes, ours: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    section = section_of(config, "MODEL", "DEIT")
    hints = {key: ours[key] for key in ("heads", "head_dim") if key in ours}
    if section.get("NUM_HEADS") is not None:
        hints = {"heads": section["NUM_HEADS"]}
    if not hints:
        raise UserError(
            "The number of heads is not stored in this ELSA checkpoint.",
            "Give the YAML file it was made with (MODEL.DEIT.NUM_HEADS), or heads with "
            "--set heads=[6] on the command line (6 for DeiT-S).",
        )
    sizes = get_family("vit").recognise(shapes, hints).model_dump(mode="json", exclude=_OPEN)
    for key, ours_key in _DEIT.items():
        _agree(f"MODEL.DEIT.{key}", section.get(key), sizes[ours_key])
    _agree("DATA.IMG_SIZE", section_of(config, "DATA").get("IMG_SIZE"), sizes["image_size"])
    ratio = _ratio_of(section, "MODEL.DEIT")
    if ratio is not None:
        hidden = {shape[0] for name, shape in shapes.items() if name.endswith("mlp.fc1.weight")}
        for found in hidden:
            _agree_hidden("MODEL.DEIT", ratio, sizes["width"][0], found)
    return sizes, ()


def _swin(
    config: Mapping[str, Any], shapes: Shapes, ours: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    section = section_of(config, "MODEL", "SWIN")
    image_size = section_of(config, "DATA").get("IMG_SIZE", ours.get("image_size"))
    notes = []
    if image_size is None and section:
        image_size = _DEFAULT_SIZE
    told = any(name.endswith(("attn_mask", "absolute_pos_embed")) for name in shapes)
    if not told and "IMG_SIZE" not in section_of(config, "DATA") and "image_size" not in ours:
        notes.append(f"Nothing tells the image size; ELSA's default {_DEFAULT_SIZE} was taken.")
    hints = {} if told or image_size is None else {"image_size": image_size}
    swin = get_family("swin")
    sizes = swin.recognise(shapes, hints).model_dump(mode="json", exclude=_OPEN)
    for key, ours_key in _SWIN.items():
        _agree(f"MODEL.SWIN.{key}", section.get(key), sizes[ours_key])
    stages = sizes["stages"]
    for key, ours_key in (("DEPTHS", "depth"), ("NUM_HEADS", "heads")):
        _agree(f"MODEL.SWIN.{key}", section.get(key), [stage[ours_key][0] for stage in stages])
    _agree("DATA.IMG_SIZE", section_of(config, "DATA").get("IMG_SIZE"), sizes["image_size"])
    _set_window(section.get("WINDOW_SIZE"), shapes, sizes)
    ratio = _ratio_of(section, "MODEL.SWIN")
    for s, stage in enumerate(stages):
        width, hidden = sizes["width"][0] << s, shapes[f"layers.{s}.blocks.0.mlp.fc1.weight"][0]
        if ratio is not None:
            _agree_hidden("MODEL.SWIN", ratio, width, hidden)
            if SwinConfig.hidden(width, ratio) == hidden:
                stage["mlp_ratio"] = [ratio]
    if section or "qk_scale" in ours:
        # Zero is no scale to ELSA's code, which then takes the usual one.
        sizes["qk_scale"] = section.get("QK_SCALE", ours.get("qk_scale")) or None
    else:
        notes.append("Nothing tells qk_scale; one over the square root of head_dim was taken.")
    return sizes, tuple(notes)


_OPEN = {"nm", "nm_of", "specs"}


def _set_window(stated: Any, shapes: Shapes, sizes: dict[str, Any]) -> None:
    """Take the window of the configuration if each stage's table is that of it."""
    if stated is None:
        return
    side = sizes["image_size"] // sizes["patch_size"]
    for s in range(len(sizes["stages"])):
        rows = shapes[f"layers.{s}.blocks.0.attn.relative_position_bias_table"][0]
        window = (math.isqrt(rows) + 1) // 2
        if not isinstance(stated, int) or min(stated, side >> s) != window:
            raise UserError(
                f"MODEL.SWIN.WINDOW_SIZE is {stated} in the configuration, but the table of "
                f"stage {s} is that of a window of {window}.",
                "Give the configuration this checkpoint was trained with.",
            )
    sizes["window"] = stated


def _ratio_of(section: Mapping[str, Any], where: str) -> float | None:
    ratio = section.get("MLP_RATIO")
    number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
    if ratio is not None and not (number and math.isfinite(ratio)):
        raise UserError(
            f"{where}.MLP_RATIO is {ratio!r}, where a number is wanted.", "Correct the YAML file."
        )
    return None if ratio is None else float(ratio)


def _agree_hidden(where: str, ratio: float, width: int, hidden: int) -> None:
    if int(width * ratio) != hidden:
        _agree(f"{where}.MLP_RATIO", ratio, round(hidden / width, 4))


def _agree(key: str, stated: Any, found: Any) -> None:
    """Refuse a configuration that is another network's.

    Raises:
        UserError: Both are known and differ.
    """
    if isinstance(found, list) and len(found) == 1 and not isinstance(stated, list):
        found = found[0]
    if stated is not None and stated != found:
        raise UserError(
            f"{key} is {stated} in the configuration, but the checkpoint has {found}.",
            "Give the configuration this checkpoint was trained with.",
        )
