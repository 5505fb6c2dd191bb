"""Sizes of nested levels: the base network, and for each level its widths and own tensors."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from elastic_export.families.base import Count, ImageConfig
from elastic_export.families.nested.network import Level, short
from elastic_export.families.nested.resnet import ResNetNetwork
from elastic_export.families.nested.vgg import VggNetwork
from elastic_export.families.nested.vit import VitNetwork

__all__ = ["NestedConfig"]


_MOST_MACS = 1 << 62
"""Costs are 64-bit numbers."""


class NestedConfig(ImageConfig):
    """Networks inside one another, from the smallest (level 1, the core) to the largest.

    Attributes:
        network: The base architecture and what its levels share.
        levels: Their widths.
        parts: Coupling group, or its short name, to the number of equal parts the stored order
            has; a level then takes a prefix of each part. For a ViT ``{"inner": heads}`` unless
            given: the same offsets of every head.
    """

    network: Annotated[VitNetwork | ResNetNetwork | VggNetwork, Field(discriminator="arch")]
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]
    parts: dict[str, Count] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _possible(self) -> NestedConfig:
        if isinstance(self.network, VggNetwork):
            forms = len(self.network.forms)
            if forms not in (1, len(self.levels)):
                raise ValueError(f"{forms} forms are given for {len(self.levels)} levels")
        for number, level in enumerate(self.levels):
            for group in self.network.groups(number):
                self._check_group(group, level, number)
            self.network.check(self, level, number)
            if self.network.cost(self, level, number)[0] > _MOST_MACS:
                raise ValueError(f"image_size {self.image_size} is larger than can be computed")
            unknown = [name for name in level.overrides if name not in self.network.layout(number)]
            if unknown:
                raise ValueError(f"level {number + 1} has no tensor {unknown[0]} of its own")
        return self

    def _check_group(self, group: str, level: Level, number: int) -> None:
        said = f"level {number + 1}"
        if not level.knows(group):
            raise ValueError(f"{said} has no size of {group}")
        size, largest = level.size(group), self.levels[-1]
        if not largest.knows(group) or size > largest.size(group):
            raise ValueError(f"{said} is wider in {group} than the last level")
        if number and size < self.levels[number - 1].size(group):
            raise ValueError(f"{said} is narrower in {group} than level {number}")
        rows = level.rows.get(group)
        if rows is None and size % self.parts_of(group):
            raise ValueError(
                f"{said}: {group} has {size} entries, which {self.parts_of(group)} parts "
                "cannot share"
            )
        if rows is None and level.heads and short(group) == "inner":
            if self.parts_of(group) % level.heads:
                raise ValueError(
                    f"{said}: {level.heads} heads do not fit the {self.parts_of(group)} parts of "
                    f"{group}, so its rows must be given"
                )
        elif rows is not None and (
            len(rows) != size or len(set(rows)) != size or max(rows) >= largest.size(group)
        ):
            raise ValueError(f"{said}: rows of {group} must be {size} different entries")

    def parts_of(self, group: str) -> int:
        """Equal parts of a group's stored order."""
        given = self.parts.get(group, self.parts.get(short(group)))
        if given is None and short(group) == "inner":
            given = self.levels[-1].heads
        return given or 1

    def prefix(self, group: str, number: int) -> tuple[int, ...]:
        """The stored entries of a group that level ``number`` (from 1) takes without ``rows``."""
        parts = self.parts_of(group)
        step = self.levels[-1].size(group) // parts
        kept = self.levels[number - 1].size(group) // parts
        return tuple(part * step + i for part in range(parts) for i in range(kept))
