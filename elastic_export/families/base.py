"""What every family of image classifiers has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from elastic_export.config.base import Schema

__all__ = ["Count", "ImageConfig", "ImageFamily", "Ratios", "Sizes", "ascending"]

Count = Annotated[int, Field(gt=0)]
Sizes = Annotated[tuple[Count, ...], Field(min_length=1)]
Ratios = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]


class ImageConfig(Schema):
    """Settings of every family: square images in, logits out, and specs by name."""

    image_size: Count = 224
    in_chans: Count = 3
    num_classes: Count = 1000
    specs: dict[str, dict[str, Any]] = Field(default_factory=dict)


class ImageFamily:
    """The parts of a family that follow from :class:`ImageConfig`."""

    def input_shape(self, config: ImageConfig) -> tuple[int, int, int]:
        """Channels, height, width."""
        return config.in_chans, config.image_size, config.image_size

    def num_classes(self, config: ImageConfig) -> int:
        """The length of the logits."""
        return config.num_classes

    def named_specs(self, config: ImageConfig) -> dict[str, Mapping[str, Any]]:
        """The specs the config names."""
        return dict(config.specs)


def ascending(config: Schema, *names: str) -> None:
    """Refuse choices that are not different and listed from small to large."""
    for name in names:
        choices = getattr(config, name)
        if list(choices) != sorted(set(choices)):
            raise ValueError(f"{name} must list different values from small to large")
