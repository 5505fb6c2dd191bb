"""Rules that gather from a table of relative positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from elastic_export.elastic.rules import Rule, Tensors
from elastic_export.elastic.rules_windows import relative_position_index

__all__ = ["TableGather"]


@dataclass(frozen=True)
class TableGather(Rule):
    """The attention bias of a map that is smaller than the one its table was made for.

    The table holds one row for each offset between two positions of a ``stored`` x ``stored`` map
    and one column for each head. The bias of the whole map is gathered, cropped to its first
    ``side`` rows and columns, and cut to the first heads. Source: ElasticViT (arXiv 2303.09730).

    Args:
        source: The table, ((2 stored - 1)^2, heads).
        stored: Side of the map the table was made for.
        side: Side of the map that is wanted, at most ``stored``.
        heads: How many of its columns are read.
    """

    source: str
    stored: int
    side: int
    heads: int

    def __post_init__(self) -> None:
        if not 0 < self.side <= self.stored:
            raise ValueError(f"a table for side {self.stored} holds no bias for side {self.side}")

    @property
    def sources(self) -> tuple[str, ...]:
        """The table."""
        return (self.source,)

    def _index(self, device: torch.device) -> Tensor:
        """Rows of the table for each pair of positions: int64 (side^2, side^2)."""
        places = torch.arange(self.stored**2).reshape(self.stored, self.stored)
        kept = places[: self.side, : self.side].reshape(-1)
        return relative_position_index(self.stored)[kept][:, kept].to(device)

    def read(self, tensors: Tensors) -> Tensor:
        """Gather, crop and cut: (heads, side^2, side^2)."""
        table = tensors[self.source]
        return table[:, : self.heads][self._index(table.device)].permute(2, 0, 1).contiguous()

    def support(self, tensors: Tensors) -> dict[str, Tensor]:
        """Every offset the smaller map holds, in the columns of the heads."""
        mask = torch.zeros_like(tensors[self.source], dtype=torch.bool)
        mask[self._index(mask.device).unique(), : self.heads] = True
        return {self.source: mask}

    def write_back(self, tensors: Tensors, value: Tensor) -> None:
        """Refuse: one number of the table stands in several places."""
        raise TypeError("a gathered bias cannot be written back")
