"""What timm's names and the shapes under them tell of a ViT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from elastic_export.errors import UserError

__all__ = ["MARKS", "settings_from_shapes"]

MARKS = ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight")
_DIMS = {"pos_embed": 3, "patch_embed.proj.weight": 4, "head.weight": 2}
_BLOCK_DIMS = {"attn.qkv.weight": 2, "mlp.fc1.weight": 2}
_CHOICES = ("width", "depth", "heads", "mlp_ratio")

Shapes = Mapping[str, tuple[int, ...]]


def settings_from_shapes(shapes: Shapes, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``VitConfig`` for the one network a plain checkpoint holds.

    Blocks may have heads and hidden widths of their own, as slimmed networks do.

    Args:
        shapes: Parameter name to shape.
        hints: Settings that are given; they win. ``heads`` or ``head_dim`` must be among them.

    Raises:
        UserError: The names or shapes are no ViT's, or the number of heads is missing or does not
            fit.
    """
    for name in MARKS:
        if name not in shapes:
            raise UserError(
                f"This is not a ViT checkpoint with timm's names: {name} is missing.",
                "Check model.family; inspect the file to see what it holds.",
            )
    depth = max(int(m[1]) for k in shapes if (m := re.match(r"blocks\.(\d+)\.", k))) + 1
    blocks = [name for i in range(depth) if (name := f"blocks.{i}.attn.qkv.weight") in shapes]
    _check_dims(shapes, [name.removesuffix(".attn.qkv.weight") for name in blocks])
    width, in_chans, patch, _ = shapes["patch_embed.proj.weight"]
    given = {
        key: (value,) if key in _CHOICES and isinstance(value, int | float) else value
        for key, value in hints.items()
    }
    inner = {name.removesuffix(".attn.qkv.weight"): shapes[name][0] // 3 for name in blocks}
    hidden = {
        block: shapes[f"{block}.mlp.fc1.weight"][0] / width
        for block in inner
        if f"{block}.mlp.fc1.weight" in shapes
    }
    head_dim = _head_dim(inner, given)
    heads = {block: size // head_dim for block, size in inner.items()}
    prefix = [int("cls_token" in shapes), int("dist_token" in shapes)]
    registers = shapes["reg_token"][1] if len(shapes.get("reg_token", ())) == 3 else 0
    found: dict[str, Any] = {
        "image_size": patch * _side(shapes["pos_embed"][1] - sum(prefix) - registers),
        "patch_size": patch,
        "in_chans": in_chans,
        "num_classes": shapes["head.weight"][0],
        "width": (width,),
        "depth": (depth,),
        "heads": (max(heads.values()),),
        "heads_of": _own(heads),
        "mlp_ratio": (max(hidden.values(), default=4.0),),
        "mlp_ratio_of": _own(hidden),
        "head_dim": head_dim,
        "class_token": bool(prefix[0]),
        "reg_tokens": registers,
        "distilled": bool(prefix[1]),
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "layer_scale": "blocks.0.ls1.gamma" in shapes,
        "global_pool": "avg" if "fc_norm.weight" in shapes else "token",
    }
    return {**found, **given}


def _own(sizes: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
    """The blocks that are smaller than the largest one."""
    top = max(sizes.values(), default=0)
    return {block: (size,) for block, size in sizes.items() if size != top}


def _check_dims(shapes: Shapes, blocks: list[str]) -> None:
    wanted = {**_DIMS}
    wanted |= {f"{block}.{layer}": dims for block in blocks for layer, dims in _BLOCK_DIMS.items()}
    for name, dims in wanted.items():
        if name in shapes and (len(shapes[name]) != dims or 0 in shapes[name]):
            raise UserError(
                f"{name} has the shape {shapes[name]}, which no ViT's has.",
                "Check model.family; inspect the file to see what it holds.",
            )


def _side(patches: int) -> int:
    side = round(max(patches, 0) ** 0.5)
    if side * side != patches or not side:
        raise UserError(
            f"The position embedding has {patches} patch entries, which is not a square grid.",
            "Only square inputs are read; convert the checkpoint first.",
        )
    return side


def _head_dim(inner: Mapping[str, int], given: Mapping[str, Any]) -> int:
    """Width of one head, from the heads or the width that is given."""
    largest = max(inner.values())
    if given.get("head_dim") is not None:
        size = given["head_dim"]
    elif given.get("heads") is not None:
        counts = given["heads"]
        known = isinstance(counts, list | tuple) and counts
        top = max(counts) if known and all(isinstance(c, int) for c in counts) else counts
        if not isinstance(top, int) or top < 1 or largest % top:
            raise UserError(
                f"heads is {top}, but the queries are {largest} wide, which is no multiple of it.",
                "Give the number of heads the network was trained with.",
            )
        size = largest // top
    else:
        raise UserError(
            "The number of heads is not stored in this checkpoint.",
            "Give it as model.config.heads in a recipe, or with --set heads=[3] on the command "
            "line (3 for DeiT-T).",
        )
    odd = [n for n in inner.values() if not isinstance(size, int) or size < 1 or n % size]
    if odd:
        raise UserError(
            f"A head is {size} wide, but a block's queries are {odd[0]} wide, which is no multiple "
            "of it.",
            "Give head_dim, the width of one head, as the network was trained with.",
        )
    return int(size)
