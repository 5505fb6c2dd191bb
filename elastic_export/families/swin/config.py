"""Sizes and choices of the family ``swin``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from elastic_export.config.base import Schema
from elastic_export.families.base import Count, ImageConfig, Ratios, Sizes, ascending
from elastic_export.families.patterns import Patterns, check_patterns_of
from elastic_export.families.vit.config import LINEARS, ROUNDING

__all__ = ["LINEARS", "SwinConfig", "SwinStage"]


class SwinStage(Schema):
    """Choices of one stage, from small to large.

    ``head_dim`` defaults to the stage's largest width over its largest number of heads.
    """

    depth: Sizes = (2,)
    heads: Sizes = (3,)
    mlp_ratio: Ratios = (4.0,)
    head_dim: Count | None = None

    @model_validator(mode="after")
    def _ascending(self) -> SwinStage:
        ascending(self, "depth", "heads", "mlp_ratio")
        return self


_SWIN_T = tuple(SwinStage(depth=(d,), heads=(h,)) for d, h in ((2, 3), (2, 6), (6, 12), (2, 24)))


class SwinConfig(ImageConfig):
    """Sizes and choices of one Swin supernet; the defaults are Swin-T.

    ``width`` is the first stage's; each stage is twice as wide as the one before. A head is
    ``head_dim`` wide whatever the width. ``window`` shrinks to the feature map where that is
    smaller. ``qk_scale`` replaces one over the square root of ``head_dim``; ``ape`` adds a position
    embedding; ``patch_norm`` normalizes the patches. ``nm`` lists patterns from sparse to dense
    and applies to every qkv, proj, fc1 and fc2 but those that ``nm_of`` names
    (``layers.0.blocks.1.attn.qkv``), which have their own. ``pos_std`` and ``init_std`` are
    the standard deviations that position values and linear layers start from.
    """

    patch_size: Count = 4
    width: Sizes = (96,)
    stages: Annotated[tuple[SwinStage, ...], Field(min_length=1)] = _SWIN_T
    window: Count = 7
    nm: Patterns = ("dense",)
    nm_of: dict[str, Patterns] = Field(default_factory=dict)
    qkv_bias: bool = True
    qk_scale: Annotated[float, Field(gt=0)] | None = None
    ape: bool = False
    patch_norm: bool = True
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    pos_std: Annotated[float, Field(ge=0)] = 0.02
    init_std: Annotated[float, Field(gt=0)] = 0.02

    @model_validator(mode="after")
    def _possible(self) -> SwinConfig:
        ascending(self, "width")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        side = self.image_size // self.patch_size
        for s, stage in enumerate(self.stages):
            if side > self.window and side % self.window:
                raise ValueError(
                    f"stage {s} has {side} x {side} places, which windows of {self.window} do not "
                    "divide: choose another image_size or window"
                )
            if s < len(self.stages) - 1 and side % 2:
                raise ValueError(
                    f"stage {s} has {side} x {side} places, which cannot be halved: choose another "
                    "image_size or fewer stages"
                )
            width, heads = self.widths(max(self.width))[s], max(stage.heads)
            if stage.head_dim is None and width % heads:
                raise ValueError(
                    f"width {width} of stage {s} is not a multiple of {heads} heads: give head_dim"
                )
            side //= 2
        check_patterns_of(self.nm, self.nm_of, self._linears())
        return self

    def _linears(self) -> dict[str, set[int]]:
        """Each linear layer with the input widths it may have."""
        layers: dict[str, set[int]] = {}
        for s, b in self.places():
            stage = self.stages[s]
            widths = {self.widths(w)[s] for w in self.width}
            inner = {h * self.dim_of_head(s) for h in stage.heads}
            hidden = {self.hidden(w, r) for w in widths for r in stage.mlp_ratio}
            inputs = zip(LINEARS, (widths, inner, widths, hidden), strict=True)
            layers |= {f"layers.{s}.blocks.{b}.{name}": sizes for name, sizes in inputs}
        return layers

    def places(self) -> Iterator[tuple[int, int]]:
        """Stage and number of every block of the deepest network."""
        for s, stage in enumerate(self.stages):
            for b in range(max(stage.depth)):
                yield s, b

    def widths(self, width: int) -> list[int]:
        """Width of each stage: 96 gives ``[96, 192, 384, 768]``."""
        return [width << s for s in range(len(self.stages))]

    def side(self, stage: int) -> int:
        """Places along one side of a stage's feature map."""
        return (self.image_size // self.patch_size) >> stage

    def window_of(self, stage: int) -> int:
        """Side of a stage's windows."""
        return min(self.window, self.side(stage))

    def shift_of(self, stage: int, block: int) -> int:
        """By how many places a block rolls the map: every other one by half a window."""
        return self.window // 2 if block % 2 and self.side(stage) > self.window else 0

    def dim_of_head(self, stage: int) -> int:
        """Width of one head of a stage."""
        found = self.stages[stage]
        return found.head_dim or self.widths(max(self.width))[stage] // max(found.heads)

    def patterns_of(self, layer: str) -> tuple[str, ...]:
        """The patterns one layer may have, from sparse to dense."""
        return self.nm_of.get(layer, self.nm)

    @staticmethod
    def hidden(width: int, ratio: float) -> int:
        """Width of the MLP's hidden layer: ``hidden(96, 4.0)`` is 384."""
        return int(width * ratio + ROUNDING)
