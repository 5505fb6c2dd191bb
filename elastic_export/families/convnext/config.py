"""Sizes and choices of the family ``convnext``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from elastic_export.config.base import Schema
from elastic_export.families.base import Count, ImageConfig, Ratios, Sizes, ascending
from elastic_export.families.patterns import Patterns, check_patterns_of
from elastic_export.families.vit.config import ROUNDING

__all__ = ["LINEARS", "ConvNextConfig", "ConvNextStage", "hidden"]

LINEARS = ("mlp.fc1", "mlp.fc2")
"""The pointwise layers of a block, which take N:M patterns."""
Positive = Annotated[float, Field(gt=0)]


class ConvNextStage(Schema):
    """Choices of one stage, from small to large; ``mlp_ratio`` is chosen for each block."""

    depth: Sizes
    width: Sizes
    mlp_ratio: Ratios = (4.0,)

    @model_validator(mode="after")
    def _ordered(self) -> ConvNextStage:
        ascending(self, "depth", "width", "mlp_ratio")
        return self


class ConvNextConfig(ImageConfig):
    """Sizes and choices of one ConvNeXt supernet; a single choice makes a fixed part.

    ``grn`` is the global response norm of ConvNeXt V2, which has no ``layer_scale``. ``nm`` and
    ``nm_of`` are those of :class:`~elastic_export.families.vit.config.VitConfig`, for
    ``stages.1.blocks.0.mlp.fc1`` and the like. ``head_norm_eps`` defaults to ``norm_eps``.
    """

    patch_size: Count = 4
    kernel_size: Count = 7
    stages: Annotated[tuple[ConvNextStage, ...], Field(min_length=1)]
    layer_scale: bool = True
    grn: bool = False
    nm: Patterns = ("dense",)
    nm_of: dict[str, Patterns] = Field(default_factory=dict)
    norm_eps: Positive = 1e-6
    head_norm_eps: Positive | None = None

    @model_validator(mode="after")
    def _possible(self) -> ConvNextConfig:
        if self.kernel_size % 2 == 0:
            raise ValueError("kernel_size must be odd")
        if self.sides[-1] == 0:
            raise ValueError(
                f"image_size {self.image_size} is too small for patch_size {self.patch_size} and "
                f"{len(self.stages)} stages"
            )
        check_patterns_of(self.nm, self.nm_of, dict(self._linears()))
        return self

    def _linears(self) -> Iterator[tuple[str, set[int]]]:
        """Each pointwise layer with the input widths it may have."""
        for s, stage in enumerate(self.stages):
            inner = {hidden(w, r) for w in stage.width for r in stage.mlp_ratio}
            for b in range(max(stage.depth)):
                yield f"stages.{s}.blocks.{b}.mlp.fc1", set(stage.width)
                yield f"stages.{s}.blocks.{b}.mlp.fc2", inner

    def patterns_of(self, layer: str) -> tuple[str, ...]:
        """The patterns one layer may have, from sparse to dense."""
        return self.nm_of.get(layer, self.nm)

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of each stage's feature map: 56, 28, 14 and 7 for 224 pixels."""
        first = self.image_size // self.patch_size
        return tuple(first >> s for s in range(len(self.stages)))


def hidden(width: int, ratio: float) -> int:
    """Width of the hidden layer: ``hidden(96, 4.0)`` is 384."""
    return int(width * ratio + ROUNDING)
