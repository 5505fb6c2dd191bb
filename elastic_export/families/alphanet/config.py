"""Sizes and choices of the family ``alphanet``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from elastic_export.config.base import Schema
from elastic_export.families.base import Count, ImageConfig, Ratios, Sizes, ascending

__all__ = ["Activation", "AlphaNetConfig", "AlphaNetStage", "inner_width"]

Activation = Literal["swish", "h_swish", "relu", "relu6"]


def inner_width(value: Any) -> Any:
    """Round to a multiple of 8, never down by more than a tenth; an int or an array of them.

    Unlike other mobile networks' rule it knows no least width: ``inner_width(2)`` is 9. Source:
    ``make_divisible`` of facebookresearch/AttentiveNAS.
    """
    rounded = np.maximum(1, (value + 4) // 8 * 8)
    rounded = rounded + 8 * (rounded < 0.9 * value)
    return rounded if isinstance(value, np.ndarray) else int(rounded)


class AlphaNetStage(Schema):
    """Choices of one stage of inverted residual blocks, from small to large.

    ``width`` is what the stage puts out, ``depth`` its number of blocks, ``kernel_size`` that of
    the depthwise convolutions, ``expand_ratio`` times its input a block's inner width. All blocks
    of a stage share them.
    """

    width: Sizes
    depth: Sizes
    kernel_size: Sizes
    expand_ratio: Ratios
    stride: Literal[1, 2]
    act: Activation = "swish"
    se: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> AlphaNetStage:
        ascending(self, "width", "depth", "kernel_size", "expand_ratio")
        even = [size for size in self.kernel_size if size % 2 == 0]
        if even:
            raise ValueError(f"kernel_size must list odd sizes, not {even}")
        return self

    def stored_inner(self, into: int) -> int:
        """Inner width of a stored block whose stored input is ``into`` wide; it is not rounded."""
        return round(into * max(self.expand_ratio))


def _published() -> tuple[AlphaNetStage, ...]:
    """The stages of the space both systems published (``supernet_config`` of their YAML)."""
    rows: list[tuple[Any, ...]] = [
        ((16, 24), (1, 2), (1,), 1, False),
        ((24, 32), (3, 4, 5), (4, 5, 6), 2, False),
        ((32, 40), (3, 4, 5, 6), (4, 5, 6), 2, True),
        ((64, 72), (3, 4, 5, 6), (4, 5, 6), 2, False),
        ((112, 120, 128), (3, 4, 5, 6, 7, 8), (4, 5, 6), 1, True),
        ((192, 200, 208, 216), (3, 4, 5, 6, 7, 8), (6,), 2, True),
        ((216, 224), (1, 2), (6,), 1, True),
    ]
    return tuple(
        AlphaNetStage(
            width=width, depth=depth, kernel_size=(3, 5), expand_ratio=expand, stride=stride, se=se
        )
        for width, depth, expand, stride, se in rows
    )


class AlphaNetConfig(ImageConfig):
    """Sizes and choices of one supernet; the defaults are the published space.

    ``image_size`` is the largest ``resolution``. ``stem`` and ``head`` list the widths of the first
    convolution and before the classifier. With ``v3_head`` the features are expanded by 6, averaged
    and mixed; without it one convolution comes before the average.
    """

    image_size: Count = 288
    resolution: Sizes = (192, 224, 256, 288)
    stem: Sizes = (16, 24)
    stem_act: Activation = "swish"
    stem_stride: Literal[1, 2] = 2
    stages: Annotated[tuple[AlphaNetStage, ...], Field(min_length=1)] = Field(
        default_factory=_published
    )
    head: Sizes = (1792, 1984)
    head_act: Activation = "swish"
    v3_head: bool = True
    bn_eps: Annotated[float, Field(gt=0)] = 1e-5

    @model_validator(mode="after")
    def _possible(self) -> AlphaNetConfig:
        ascending(self, "resolution", "stem", "head")
        if self.image_size != max(self.resolution):
            raise ValueError(
                f"image_size {self.image_size} is not the largest resolution {max(self.resolution)}"
            )
        inputs = self.stem
        for s, stage in enumerate(self.stages):
            for widths in (inputs, stage.width) if max(stage.depth) > 1 else (inputs,):
                self._check_inner(f"stage {s + 1}", stage, widths)
            inputs = stage.width
        return self

    @staticmethod
    def _check_inner(name: str, stage: AlphaNetStage, inputs: tuple[int, ...]) -> None:
        """Refuse inner widths that are rounded up beyond what is stored."""
        stored = stage.stored_inner(max(inputs))
        for into in inputs:
            for ratio in stage.expand_ratio:
                inner = inner_width(round(into * ratio))
                if inner > stored or (ratio == 1 and inner != into):
                    raise ValueError(
                        f"{name}: width {into} with expand_ratio {ratio:g} is rounded to {inner} "
                        f"inner channels, which the stored {stored} cannot give"
                    )
                if stage.se and inner_width(inner // 4) > inner_width(stored // 4):
                    raise ValueError(
                        f"{name}: the squeeze of {inner} channels is wider than the stored one"
                    )
