"""Sizes and choices of the family ``vit``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from elastic_export.families.base import Count, ImageConfig, Ratios, Sizes, ascending
from elastic_export.space import density
from elastic_export.space.cost import reduction_block

__all__ = ["LINEARS", "VitConfig", "check_patterns_of"]

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
"""The linear layers of a block, which take N:M patterns."""
# A ratio read back from sizes (hidden / width) may lie a rounding error below the true one.
ROUNDING = 1e-6
Patterns = Annotated[tuple[str, ...], Field(min_length=1)]


class VitConfig(ImageConfig):
    """Sizes and choices of one ViT supernet; a single choice makes a fixed part.

    Choices are listed from small to large. ``nm`` lists patterns from sparse to dense and applies
    to every qkv, proj, fc1 and fc2 but those that ``nm_of`` names (``blocks.3.attn.qkv``), which
    have their own. ``head_dim`` defaults to the largest width over the largest
    number of heads. ``pos_std`` and ``init_std`` are the standard deviations that positions and the
    blocks' linear layers start from.
    """

    patch_size: Count = 16
    width: Sizes = (192,)
    depth: Sizes = (12,)
    heads: Sizes = (3,)
    mlp_ratio: Ratios = (4.0,)
    nm: Patterns = ("dense",)
    nm_of: dict[str, Patterns] = Field(default_factory=dict)
    head_dim: Count | None = None
    class_token: bool = True
    reg_tokens: Annotated[int, Field(ge=0)] = 0
    distilled: bool = False
    qkv_bias: bool = True
    layer_scale: bool = False
    global_pool: Literal["token", "avg"] = "token"
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    pos_std: Annotated[float, Field(ge=0)] = 0.02
    init_std: Annotated[float, Field(gt=0)] = 0.02

    @model_validator(mode="after")
    def _possible(self) -> VitConfig:
        ascending(self, "width", "depth", "heads", "mlp_ratio")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.head_dim is None and max(self.width) % max(self.heads):
            raise ValueError(
                f"width {max(self.width)} is not a multiple of {max(self.heads)} heads: "
                "give head_dim"
            )
        if self.global_pool == "token" and not self.class_token:
            raise ValueError("global_pool token needs class_token")
        if self.distilled and (not self.class_token or self.global_pool != "token"):
            raise ValueError("a distilled network needs class_token and global_pool token")
        check_patterns_of(self.nm, self.nm_of, self._linears())
        return self

    def _linears(self) -> dict[str, set[int]]:
        """Each linear layer with the input widths it may have."""
        inner = {h * self.dim_of_head for h in self.heads}
        hidden = {self.hidden(w, r) for w in self.width for r in self.mlp_ratio}
        inputs = (set(self.width), inner, set(self.width), hidden)
        return {
            f"blocks.{i}.{name}": sizes
            for i in range(max(self.depth))
            for name, sizes in zip(LINEARS, inputs, strict=True)
        }

    def patterns_of(self, layer: str) -> tuple[str, ...]:
        """The patterns one layer may have, from sparse to dense."""
        return self.nm_of.get(layer, self.nm)

    @property
    def dim_of_head(self) -> int:
        """Width of one head."""
        return self.head_dim or max(self.width) // max(self.heads)

    @property
    def tokens(self) -> int:
        """Sequence length: patches, class token, distillation token, registers."""
        patches = (self.image_size // self.patch_size) ** 2
        return patches + self.class_token + self.distilled + self.reg_tokens

    @staticmethod
    def hidden(width: int, ratio: float) -> int:
        """Width of the MLP's hidden layer: ``hidden(192, 3.5)`` is 672."""
        return int(width * ratio + ROUNDING)


def check_patterns_of(
    nm: tuple[str, ...],
    nm_of: Mapping[str, tuple[str, ...]],
    layers: Mapping[str, set[int]],
) -> None:
    """Check the pattern choices of a family's layers.

    Args:
        nm: The choices of all layers.
        nm_of: Layers with choices of their own.
        layers: Every layer that may be sparse, with the input widths it may have.

    Raises:
        ValueError: Choices are not listed from sparse to dense, a layer does not exist, or an
            input width is not a multiple of M.
    """
    unknown = sorted(nm_of.keys() - layers.keys())
    if unknown:
        raise ValueError(f"nm_of names {unknown[0]}, which is no layer that can be sparse")
    for name, patterns in (("nm", nm), *nm_of.items()):
        kept = [density(p) for p in patterns]
        if kept != sorted(set(kept)):
            raise ValueError(f"{name} must list different patterns from sparse to dense")
    for layer, sizes in layers.items():
        for pattern in nm_of.get(layer, nm):
            odd = sorted(k for k in sizes if k % reduction_block(pattern))
            if odd:
                raise ValueError(
                    f"{pattern} needs widths that are multiples of its M, not {odd} ({layer})"
                )
