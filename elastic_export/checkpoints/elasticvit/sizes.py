"""What the shapes of an ElasticViT checkpoint say about its supernet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

from elastic_export.checkpoints.reader import Keys
from elastic_export.errors import UserError

__all__ = ["Sizes", "StageSizes", "sizes_of"]

DAMAGED = "The file is incomplete or of another version of the system."


@dataclass(frozen=True)
class StageSizes:
    """Largest sizes of one stage; ``ratio`` and ``se`` of kind C, the rest of kind T."""

    kind: str
    depth: int
    channels: int
    ratio: float = 0
    se: bool = False
    mlp_ratio: float = 0
    v_scale: float = 0
    heads: int = 0
    side: int = 0


@dataclass(frozen=True)
class Sizes:
    """Largest sizes of a supernet."""

    in_chans: int
    num_classes: int
    stem_depth: int
    stem_channels: int
    head_expand: float
    head_hidden: int
    stages: tuple[StageSizes, ...]

    def head_dim(self) -> int:
        """The widest head by which every stage has its number of heads; 0 if there is none."""
        tokens = [stage for stage in self.stages if stage.kind == "T"]
        widest = min((stage.channels // stage.heads for stage in tokens), default=0)
        fits = all(stage.channels // widest == stage.heads for stage in tokens) if widest else False
        return widest if fits else 0


def sizes_of(keys: Keys, path: Path) -> Sizes:
    """Read them off.

    Raises:
        UserError: A tensor is missing or its shape makes no sense.
    """
    shape = _Shapes(keys, path)
    found: dict[int, set[int]] = {}
    for name in keys:
        if match := re.match(r"feature_exactor\.(\d+)\.layers\.(\d+)\.", name):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    if sorted(found) != list(range(len(found))) or not found:
        raise UserError(f"{path} has no stages, or lacks one between others.", DAMAGED)
    stem = {int(m[1]) for name in keys if (m := re.match(r"conv_stem\.layers\.(\d+)\.", name))}
    stages = tuple(_stage(shape, keys, s, max(layers) + 1) for s, layers in sorted(found.items()))
    return Sizes(
        in_chans=shape("first_conv.weight", 1),
        num_classes=shape("classifer.weight", 0),
        stem_depth=max(stem, default=0) + 1,
        stem_channels=shape("first_conv.weight", 0),
        head_expand=_ratio(shape("pre_head_0.weight", 0), stages[-1].channels),
        head_hidden=shape("pre_head_1.weight", 0),
        stages=stages,
    )


def _stage(shape: _Shapes, keys: Keys, s: int, layers: int) -> StageSizes:
    first = f"feature_exactor.{s}.layers.0"
    if f"{first}.qkv.weight" not in keys:
        channels = shape(f"{first}.0.pwl_conv.weight", 0)
        return StageSizes(
            "C",
            layers,
            channels,
            ratio=_ratio(shape(f"{first}.0.dw_conv.weight", 0), channels),
            se=f"{first}.0.se_conv1.weight" in keys,
        )
    channels = shape(f"{first}.proj.weight", 0)
    rows = shape(f"{first}.attention_bias", 0)
    width = isqrt(rows)
    if width**2 != rows or width % 2 == 0:
        raise UserError(
            f"{first}.attention_bias of {shape.path} has {rows} rows, which no square map gives.",
            DAMAGED,
        )
    return StageSizes(
        "T",
        (layers + 1) // 2,
        channels,
        mlp_ratio=_ratio(shape(f"feature_exactor.{s}.layers.1.fc1.weight", 0), channels),
        v_scale=_ratio(shape(f"{first}.proj.weight", 1), channels),
        heads=shape(f"{first}.attention_bias", 1),
        side=(width + 1) // 2,
    )


def _ratio(wide: int, narrow: int) -> float:
    """A whole number where it is one."""
    return wide // narrow if wide % narrow == 0 else wide / narrow


@dataclass(frozen=True)
class _Shapes:
    keys: Keys
    path: Path

    def __call__(self, name: str, dim: int) -> int:
        """One size of a tensor, which must be there and not empty."""
        shape = self.keys.shape(name)
        if dim >= len(shape) or not all(shape):
            raise UserError(f"{name} of {self.path} has the shape {shape}.", DAMAGED)
        return shape[dim]
