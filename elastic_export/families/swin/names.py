"""What the names of ``swin_module`` and the shapes under them tell of a Swin Transformer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from elastic_export.errors import UserError

__all__ = ["MARKS", "settings_from_shapes"]

_TABLE = "attn.relative_position_bias_table"
MARKS = ("patch_embed.proj.weight", f"layers.0.blocks.0.{_TABLE}", "head.weight")
_DIMS = {"patch_embed.proj.weight": 4, "head.weight": 2, "absolute_pos_embed": 3}
_LEAVES = (_TABLE, "mlp.fc1.weight", "attn.proj.weight")

Shapes = Mapping[str, tuple[int, ...]]


def settings_from_shapes(shapes: Shapes, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``SwinConfig`` for the one network a file holds.

    The window of a file is that of its largest table. The image size follows from a position
    embedding or an ``attn_mask``.

    Args:
        shapes: Parameter (and buffer) name to shape.
        hints: Settings that are given; they win. Where a file has neither positions nor masks,
            ``image_size`` must be among them.

    Raises:
        UserError: The names or shapes are no Swin's, or the image size is missing.
    """
    for name in MARKS:
        if name not in shapes:
            raise UserError(
                f"This is not a Swin checkpoint with Microsoft's names: {name} is missing.",
                "Name another format with --format; inspect the file to see what it holds.",
            )
    for name, dims in _DIMS.items():
        if name in shapes:
            _check_dims(name, shapes[name], dims)
    width, in_chans, patch, _ = shapes["patch_embed.proj.weight"]
    windows = [
        _window(name, shape) for name, shape in shapes.items() if name.endswith(f".{_TABLE}")
    ]
    found: dict[str, Any] = {
        "patch_size": patch,
        "in_chans": in_chans,
        "num_classes": shapes["head.weight"][0],
        "width": (width,),
        "stages": _stages(shapes),
        "window": max(windows),
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in shapes,
        "ape": "absolute_pos_embed" in shapes,
        "patch_norm": "patch_embed.norm.weight" in shapes,
    }
    side = _side(shapes, max(windows))
    if side is not None:
        found["image_size"] = side * patch
    elif "image_size" not in hints:
        raise UserError(
            "The image size is not stored in this Swin checkpoint.",
            "Give it as model.config.image_size in a recipe, or with --set image_size=224 on the "
            "command line.",
        )
    return {**found, **hints}


def _stages(shapes: Shapes) -> tuple[dict[str, Any], ...]:
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        if place := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name):
            blocks.setdefault(int(place[1]), set()).add(int(place[2]))
    stages = []
    for number, s in enumerate(sorted(blocks)):
        if s != number or max(blocks[s]) >= len(blocks[s]):
            raise UserError(
                f"Blocks are missing before layers.{s}.blocks.{max(blocks[s])} in this checkpoint.",
                "The file is incomplete; copy or download it again.",
            )
        names = [f"layers.{s}.blocks.0.{leaf}" for leaf in _LEAVES]
        for name in names:
            if name not in shapes:
                raise UserError(
                    f"This Swin checkpoint has no tensor {name}.",
                    "The file is incomplete; copy or download it again.",
                )
            _check_dims(name, shapes[name], 2)
        table, fc1, proj = (shapes[name] for name in names)
        stages.append(
            {
                "depth": (len(blocks[s]),),
                "heads": (table[1],),
                "mlp_ratio": (fc1[0] / fc1[1],),
                "head_dim": proj[1] // table[1],
            }
        )
    return tuple(stages)


def _window(name: str, shape: tuple[int, ...]) -> int:
    _check_dims(name, shape, 2)
    rows = math.isqrt(shape[0])
    if rows**2 != shape[0] or rows % 2 == 0:
        raise UserError(
            f"{name} has {shape[0]} rows, which is no table of a square window.",
            "Only Swin Transformers with square windows are read.",
        )
    return (rows + 1) // 2


def _side(shapes: Shapes, window: int) -> int | None:
    """Places along one side of the first stage, where the file tells."""
    if "absolute_pos_embed" in shapes:
        return math.isqrt(shapes["absolute_pos_embed"][1])
    for name, shape in shapes.items():
        if place := re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.attn_mask", name):
            return (math.isqrt(shape[0]) * window) << int(place[1])
    return None


def _check_dims(name: str, shape: tuple[int, ...], dims: int) -> None:
    if len(shape) != dims or 0 in shape:
        raise UserError(
            f"{name} has the shape {shape}, which no Swin's has.",
            "Check model.family; inspect the file to see what it holds.",
        )
