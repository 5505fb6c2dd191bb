"""What the base architectures of nested levels offer, and the sizes of one level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import nn

from elastic_export.config.base import Schema
from elastic_export.elastic.family import Layout
from elastic_export.families.base import Count, ImageConfig

__all__ = ["Level", "Network", "group_sizes", "short"]


def short(group: str) -> str:
    """The last part of a group's name: ``short("blocks.3.hidden")`` is ``hidden``."""
    return group.rsplit(".", 1)[-1]


class Level(Schema):
    """One network of the nested ones.

    Attributes:
        sizes: Coupling group to width; a short name (``hidden``) stands for every group of that
            kind that is not named in full.
        heads: Attention heads, for a ViT.
        overrides: Tensors of which this level has its own, instead of a slice of the largest
            level's.
        rows: Coupling group to the entries of the stored order that this level takes, in its own
            order; groups that are not named take a prefix.
    """

    sizes: dict[str, Count]
    heads: Count | None = None
    overrides: tuple[str, ...] = ()
    rows: dict[str, tuple[Annotated[int, Field(ge=0)], ...]] = Field(default_factory=dict)

    def size(self, group: str) -> int:
        """The width of a coupling group."""
        return self.sizes[group] if group in self.sizes else self.sizes[short(group)]

    def knows(self, group: str) -> bool:
        """Whether the width of a group is given."""
        return group in self.sizes or short(group) in self.sizes


class Network(Schema, ABC):
    """A base architecture: what all levels share, and how a level's plain module is built.

    ``number`` counts levels from 0. Costs are checked against torch's counter at extraction.
    """

    @abstractmethod
    def layout(self, number: int) -> Layout:
        """Coupling groups of every tensor of a level's plain module."""

    @abstractmethod
    def plain(self, image: ImageConfig, level: Level, number: int) -> nn.Module:
        """The plain module of a level; called where tensors are on meta."""

    @abstractmethod
    def cost(self, image: ImageConfig, level: Level, number: int) -> tuple[int, int]:
        """MACs and parameters of a level in closed form."""

    def check(self, image: ImageConfig, level: Level, number: int) -> None:
        """Refuse what cannot be built.

        Raises:
            ValueError: The sizes or settings do not fit together.
        """

    def repeats(self, name: str) -> int:
        """How many neighboring columns (dimension 1) of a tensor belong to one channel."""
        return 1

    def groups(self, number: int) -> tuple[str, ...]:
        """Every coupling group, in the order of the layout."""
        dims = [dim for dims in self.layout(number).values() for dim in dims if dim is not None]
        return tuple(dict.fromkeys(dim.group for dim in dims))


def group_sizes(
    network: Network, number: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, set[int]]:
    """The widths of each coupling group that a level's tensors show; more than one is a fault."""
    found: dict[str, set[int]] = {}
    layout = network.layout(number)
    for name, shape in shapes.items():
        repeats = network.repeats(name)
        for axis, (dim, size) in enumerate(zip(layout[name], shape, strict=True)):
            if dim is not None:
                parts = dim.blocks * (repeats if axis == 1 else 1)
                found.setdefault(dim.group, set()).add(size // parts)
    return found
