"""Sizes and choices of the family ``vit``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from elastic_export.families.base import Count, ImageConfig, Ratios, Sizes, ascending
from elastic_export.families.patterns import Patterns, check_patterns_of

__all__ = ["LINEARS", "VitConfig"]

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
"""The linear layers of a block, which take N:M patterns."""
# A ratio read back from sizes (hidden / width) may lie a rounding error below the true one.
ROUNDING = 1e-6


class VitConfig(ImageConfig):
    """Sizes and choices of one ViT supernet; a single choice makes a fixed part.

    Choices are listed from small to large. ``nm`` lists patterns from sparse to dense and applies
    to every qkv, proj, fc1 and fc2 but those that ``nm_of`` names (``blocks.3.attn.qkv``), which
    have their own. In the same way ``heads_of`` and ``mlp_ratio_of`` give the blocks they name
    (``blocks.3``) choices of their own. ``head_dim`` defaults to the largest width over the largest
    number of heads. ``dead_heads`` says that the heads beyond a spec's have zero weights, so that
    what their value biases add goes into the projection's bias. ``pos_std`` and ``init_std`` are
    the standard deviations that positions and the blocks' linear layers start from.

    With ``token_keep`` a linear layer scores the tokens after the position embedding and the blocks
    work on that many (SViTE's token selector, arXiv 2106.04533, without its noise). The form
    ``zero`` multiplies the other tokens by zero, as SViTE trains it: the ``token_keep`` best of all
    tokens are kept, and those that are not patches in any case. The form ``gather`` drops them, so
    that the blocks cost less: exactly ``token_keep`` tokens are left, those that are not patches
    and the best patches. The two compute different functions.
    """

    patch_size: Count = 16
    width: Sizes = (192,)
    depth: Sizes = (12,)
    heads: Sizes = (3,)
    mlp_ratio: Ratios = (4.0,)
    nm: Patterns = ("dense",)
    nm_of: dict[str, Patterns] = Field(default_factory=dict)
    heads_of: dict[str, Sizes] = Field(default_factory=dict)
    mlp_ratio_of: dict[str, Ratios] = Field(default_factory=dict)
    head_dim: Count | None = None
    dead_heads: bool = False
    class_token: bool = True
    reg_tokens: Annotated[int, Field(ge=0)] = 0
    distilled: bool = False
    qkv_bias: bool = True
    layer_scale: bool = False
    global_pool: Literal["token", "avg"] = "token"
    token_keep: Count | None = None
    token_form: Literal["zero", "gather"] = "zero"
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
        self._check_blocks()
        check_patterns_of(self.nm, self.nm_of, self._linears())
        if self.token_keep and not self.prefix_tokens < self.token_keep <= self.tokens:
            raise ValueError(
                f"token_keep must be more than {self.prefix_tokens} and at most {self.tokens}, the "
                "number of tokens"
            )
        return self

    def _check_blocks(self) -> None:
        blocks = {f"blocks.{i}" for i in range(max(self.depth))}
        named: tuple[tuple[str, Mapping[str, tuple[float, ...]]], ...] = (
            ("heads_of", self.heads_of),
            ("mlp_ratio_of", self.mlp_ratio_of),
        )
        for name, own in named:
            unknown = sorted(own.keys() - blocks)
            if unknown:
                raise ValueError(f"{name} names {unknown[0]}, which is no block")
            for block, choices in own.items():
                if list(choices) != sorted(set(choices)):
                    raise ValueError(
                        f"{name} must list different values from small to large ({block})"
                    )

    def _linears(self) -> dict[str, set[int]]:
        """Each linear layer with the input widths it may have."""
        layers: dict[str, set[int]] = {}
        for i in range(max(self.depth)):
            inner = {h * self.dim_of_head for h in self.heads_in(i)}
            hidden = {self.hidden(w, r) for w in self.width for r in self.ratios_in(i)}
            inputs = (set(self.width), inner, set(self.width), hidden)
            layers |= {
                f"blocks.{i}.{name}": sizes for name, sizes in zip(LINEARS, inputs, strict=True)
            }
        return layers

    def heads_in(self, block: int) -> tuple[int, ...]:
        """The numbers of heads one block may have."""
        return self.heads_of.get(f"blocks.{block}", self.heads)

    def ratios_in(self, block: int) -> tuple[float, ...]:
        """The MLP ratios one block may have."""
        return self.mlp_ratio_of.get(f"blocks.{block}", self.mlp_ratio)

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
        return (self.image_size // self.patch_size) ** 2 + self.prefix_tokens

    @property
    def prefix_tokens(self) -> int:
        """How many tokens are no patches; they come first."""
        return int(self.class_token) + int(self.distilled) + self.reg_tokens

    @property
    def block_tokens(self) -> int:
        """Sequence length in the blocks; shorter than ``tokens`` where tokens are dropped."""
        return self.token_keep if self.token_keep and self.token_form == "gather" else self.tokens

    @staticmethod
    def hidden(width: int, ratio: float) -> int:
        """Width of the MLP's hidden layer: ``hidden(192, 3.5)`` is 672."""
        return int(width * ratio + ROUNDING)
