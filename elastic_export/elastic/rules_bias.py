"""A bias that takes up what a removed part would have added, where that is a constant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from elastic_export.elastic.rules import Rule, Tensors

__all__ = ["DeadHeads"]


@dataclass(frozen=True)
class DeadHeads(Rule):
    """The bias of an attention's projection without its dead heads.

    A head whose query, key and value weights are zero puts out its value bias at every token,
    because attention weights sum to one. The projection turns that into a constant, which goes into
    its bias: ``proj.bias + proj.weight[:, kept:] @ value_bias[kept:]``.

    Args:
        bias: The projection's bias, (width,) or longer.
        weight: The projection's weight, (width, inner).
        packed: The bias of the packed q, k and v, (3 x inner,).
        width: Length of what is read.
        kept: Columns of the projection that stay.
    """

    bias: str
    weight: str
    packed: str
    width: int
    kept: int

    @property
    def sources(self) -> tuple[str, ...]:
        """The bias, the weight, the packed bias."""
        return (self.bias, self.weight, self.packed)

    def read(self, tensors: Tensors) -> Tensor:
        """Add the constant; the products are summed in float64 and rounded once."""
        weight = tensors[self.weight][: self.width, self.kept :]
        dead = tensors[self.packed][2 * tensors[self.weight].shape[1] + self.kept :]
        bias = tensors[self.bias][: self.width]
        return (bias.double() + weight.double() @ dead.double()).to(bias.dtype)

    def support(self, tensors: Tensors) -> dict[str, Tensor]:
        """The bias, the dead columns of the weight, the dead heads' value biases."""
        marks = {name: torch.zeros_like(tensors[name], dtype=torch.bool) for name in self.sources}
        marks[self.bias][: self.width] = True
        marks[self.weight][: self.width, self.kept :] = True
        marks[self.packed][2 * tensors[self.weight].shape[1] + self.kept :] = True
        return marks

    def write_back(self, tensors: Tensors, value: Tensor) -> None:
        """Refuse: it is a weight, and only buffers are written back."""
        raise TypeError("a folded bias cannot be written back")
