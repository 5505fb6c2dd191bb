"""Sizes and choices of the family ``autoformer``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from elastic_export.families.base import Count, ImageConfig, Ratios, Sizes, ascending

__all__ = ["BOUNDS", "HEAD_DIM", "AutoFormerConfig"]

HEAD_DIM = 64
"""Width of one head of a network with ``change_qkv``, whatever its sizes (AutoFormer's code)."""

BOUNDS = {
    "width": "super_width",
    "depth": "super_depth",
    "heads": "super_heads",
    "mlp_ratio": "super_mlp_ratio",
}
"""Each list of choices and the stored size that bounds it."""


class AutoFormerConfig(ImageConfig):
    """Sizes and choices of one AutoFormer supernet; the defaults are the published supernet-T.

    The ``super_`` sizes are those of the stored tensors. Choices may be smaller: the published
    supernets never train their full width, so ``max`` is the largest choice, not the stored size.
    The flags are those of AutoFormer's command line:

    ``gp``: the classifier reads the mean of the patch tokens instead of the class token.
    ``change_qkv``: a network has as many rows of ``qkv`` as its heads need; without it all rows
    are kept and shared among the heads.
    ``relative_position``: attention has tables of relative positions, for keys and for values,
    whose distances are clipped at ``max_relative_position``.
    ``no_abs_pos``: there is no position embedding.
    ``scale``: attention and MLP outputs grow by stored size over chosen size. The command line
    never sets it; a model built in code may.
    """

    patch_size: Count = 16
    super_width: Count = 256
    super_depth: Count = 14
    super_heads: Count = 4
    super_mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    width: Sizes = (192, 216, 240)
    depth: Sizes = (12, 13, 14)
    heads: Sizes = (3, 4)
    mlp_ratio: Ratios = (3.5, 4.0)
    gp: bool = True
    change_qkv: bool = True
    relative_position: bool = True
    no_abs_pos: bool = False
    max_relative_position: Count = 14
    qkv_bias: bool = True
    scale: bool = False

    @model_validator(mode="after")
    def _possible(self) -> AutoFormerConfig:
        ascending(self, *BOUNDS)
        for name, bound in BOUNDS.items():
            largest, stored = max(getattr(self, name)), getattr(self, bound)
            if largest > stored:
                raise ValueError(f"{name} {largest} is larger than the stored {bound} {stored}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if min(self.width) * min(self.mlp_ratio) < 1:
            raise ValueError("the smallest width times the smallest mlp_ratio is below 1")
        if self.change_qkv:
            self._possible_heads()
        else:
            self._possible_shares()
        return self

    def _possible_heads(self) -> None:
        fitting = self.super_width // HEAD_DIM
        if max(self.heads) > fitting:
            raise ValueError(
                f"with change_qkv a head is {HEAD_DIM} wide, so super_width {self.super_width} "
                f"holds {fitting} heads, not {max(self.heads)}"
            )
        if self.relative_position and self.table_width < HEAD_DIM:
            raise ValueError(
                f"relative position tables of width {self.table_width} (super_width over "
                f"super_heads) cannot serve heads of width {HEAD_DIM}"
            )

    def _possible_shares(self) -> None:
        odd = [h for h in self.heads if self.super_width % h]
        if odd:
            raise ValueError(
                f"without change_qkv the stored width {self.super_width} is shared among the "
                f"heads, which {odd} heads cannot: leave them out of heads"
            )
        wide = [h for h in self.heads if self.super_width // h > self.table_width]
        if self.relative_position and wide:
            raise ValueError(
                f"relative position tables of width {self.table_width} cannot serve networks "
                f"with {wide} heads without change_qkv: leave them out of heads"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Sequence length: the class token and the patches."""
        return self.grid**2 + 1

    @property
    def table_width(self) -> int:
        """Width of the stored relative position tables."""
        return self.super_width // self.super_heads

    @property
    def table_rows(self) -> int:
        """Rows of a relative position table: the class token, then every clipped distance."""
        return 2 * self.max_relative_position + 2

    def inner(self, heads: int) -> int:
        """Width of q, of k and of v in a block with so many heads."""
        return HEAD_DIM * heads if self.change_qkv else self.super_width

    @staticmethod
    def hidden(width: int, ratio: float) -> int:
        """Width of the MLP's hidden layer: ``hidden(192, 3.5)`` is 672."""
        return int(width * ratio)
