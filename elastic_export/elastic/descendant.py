"""A descendant: an extracted plain module with where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Descendant"]


@dataclass
class Descendant:
    """A plain module and its provenance.

    Attributes:
        family: Name of the family.
        config: The supernet's config as plain data.
        genes: The spec's choices.
        spec_id: The spec's id.
        module: Ordinary layers, static shapes, eval mode.
        folded: Whether BatchNorm has been folded into the convolutions.
        patterns: Parameter name to the N:M pattern it holds; dense ones are left out.
    """

    family: str
    config: dict[str, Any]
    genes: dict[str, Any]
    spec_id: str
    module: nn.Module
    folded: bool = False
    patterns: dict[str, str] = field(default_factory=dict)
