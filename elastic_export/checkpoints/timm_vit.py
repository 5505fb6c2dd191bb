"""What the readers of DeiT's descendants share: timm's names, and heads that only a name tells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from elastic_export.errors import UserError
from elastic_export.families.registry import family_config, get_family
from elastic_export.families.vit.config import VitConfig
from elastic_export.families.vit.names import settings_from_shapes

__all__ = [
    "arguments",
    "blocks_of",
    "check_binary",
    "named_heads",
    "vit_config",
]

_HEADS = {"tiny": 3, "small": 6, "base": 12}
_NAME = r"(?:sparse_)?(?:deit3?|vit)_(tiny|small|base)_(?:distilled_)?patch(?:8|16|32)_(?:224|384)"
_HEAD_DIM = 64


def arguments(content: Any) -> Mapping[str, Any]:
    """The command line a training checkpoint of DeiT's code keeps under ``args``; maybe empty."""
    args = content.get("args") if isinstance(content, Mapping) else None
    return args if isinstance(args, Mapping) else {}


def named_heads(args: Mapping[str, Any], width: int) -> int | None:
    """The heads of a model that is timm's by its name and its width; None for any other."""
    match = re.fullmatch(_NAME, str(args.get("model", "")), flags=re.IGNORECASE)
    heads = _HEADS[match[1].lower()] if match else 0
    return heads if heads and heads * _HEAD_DIM == width else None


def vit_config(
    tensors: Mapping[str, Tensor], given: Mapping[str, Any], args: Mapping[str, Any]
) -> VitConfig:
    """Settings of the network a state dict with timm's names holds.

    Args:
        tensors: Parameter name to tensor.
        given: Family settings; they win. ``heads`` may be missing where ``args`` names a model of
            timm.
        args: The command line of the training.

    Raises:
        UserError: Settings are missing, do not fit, or are unknown.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    hints = dict(given)
    if "heads" not in hints and "head_dim" not in hints and len(shapes.get("pos_embed", ())) == 3:
        heads = named_heads(args, shapes["pos_embed"][2])
        if heads is not None:
            hints["heads"] = (heads,)
    config = family_config(get_family("vit"), settings_from_shapes(shapes, hints))
    assert isinstance(config, VitConfig)
    return config


def blocks_of(names: Mapping[str, Any]) -> list[str]:
    """The blocks (``blocks.0``, ...) a state dict names, in order."""
    found = {int(m[1]) for name in names if (m := re.match(r"blocks\.(\d+)\.", name))}
    return [f"blocks.{i}" for i in sorted(found)]


def check_binary(mask: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """The mask as bool, true where kept.

    Raises:
        UserError: It is no tensor of that shape, or holds anything but 0 and 1.
    """
    if not isinstance(mask, Tensor) or tuple(mask.shape) != shape:
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UserError(
            f"The mask of {name} has the shape {found}, but the weight has {shape}.",
            "Use the checkpoint as it was saved; this one was put together of two.",
        )
    kept = mask != 0
    if not bool((mask[kept] == 1).all()):
        raise UserError(
            f"The mask of {name} holds values other than 0 and 1.",
            "Only binary masks are read; multiply other ones into the weights first.",
        )
    return kept.detach()
