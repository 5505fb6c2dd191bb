"""The plain AutoFormer: static shapes, ordinary layers, relative positions without lookups.

Source: Chen et al., AutoFormer (arXiv 2107.00651); relative positions of Shaw et al. (arXiv
1803.02155), one table for rows and one for columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_export.families.autoformer.config import AutoFormerConfig

__all__ = ["BlockSizes", "PlainAutoFormer"]

NORM_EPS = 1e-5


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of one block.

    Attributes:
        heads: Number of heads.
        inner: Width of q, of k and of v; a head has ``inner / heads`` of it.
        hidden: Width of the MLP's hidden layer.
        table: Width of the relative position tables.
        attention_factor: What the attention output is multiplied by.
        mlp_factor: What the MLP output is multiplied by.
    """

    heads: int
    inner: int
    hidden: int
    table: int
    attention_factor: float = 1.0
    mlp_factor: float = 1.0


class _RelativePositions(nn.Module):
    """Two tables (rows, width): vertical and horizontal distance; row 0 is the class token's.

    The embedding of a pair of patches is the sum of one entry of each table, so what depends on it
    splits into a part for the rows and a part for the columns of the grid: a product with ``grid``
    entries each instead of one with ``grid**2``.
    """

    def __init__(self, config: AutoFormerConfig, width: int) -> None:
        super().__init__()
        self.grid = config.grid
        self.limit = config.max_relative_position
        self.embeddings_table_v = nn.Parameter(torch.empty(config.table_rows, width))
        self.embeddings_table_h = nn.Parameter(torch.empty(config.table_rows, width))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """For rows and for columns (grid, grid, width) by query and key; for the class (width,).

        The tables are indexed by constants, so exporters fold this into constants.
        """
        table_v, table_h = self.embeddings_table_v, self.embeddings_table_h
        places = torch.arange(self.grid, device=table_v.device)
        distance = (places[None, :] - places[:, None]).clamp(-self.limit, self.limit)
        entries = distance + self.limit + 1
        return table_v[entries], table_h[entries], table_v[0] + table_h[0]


class _Attention(nn.Module):
    """Self-attention; relative positions become additional features of queries, keys and values.

    A key's additional features say where it is (is it the class token, in which row and in which
    column), a query's what each of these adds to the score. The same features appended to the
    values collect how much attention went to each row and column. So attention stays one softmax
    between two products, as inference engines know it.
    """

    def __init__(self, config: AutoFormerConfig, width: int, sizes: BlockSizes) -> None:
        super().__init__()
        self.grid = config.grid
        self.heads = sizes.heads
        self.head_dim = sizes.inner // sizes.heads
        # Without change_qkv the code this follows takes the chosen width, not the head's.
        scaled = self.head_dim if config.change_qkv else width // sizes.heads
        self.scale = scaled**-0.5
        self.factor = sizes.attention_factor
        self.relative = config.relative_position
        self.qkv = nn.Linear(width, 3 * sizes.inner, bias=config.qkv_bias)
        self.proj = nn.Linear(sizes.inner, width)
        if self.relative:
            self.rel_pos_embed_k = _RelativePositions(config, sizes.table)
            self.rel_pos_embed_v = _RelativePositions(config, sizes.table)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            part.reshape(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        if self.relative:
            places = self._places(x).expand(batch, self.heads, -1, -1)
            q = torch.cat((q, self._query_features(q)), dim=-1)
            k, v = torch.cat((k, places), dim=-1), torch.cat((v, places), dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        if self.relative:
            mixed, places = mixed.split((self.head_dim, 2 * self.grid + 1), dim=-1)
            mixed = mixed + self._mixed_positions(places)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, -1)
        if self.factor != 1.0:
            mixed = mixed * self.factor
        return self.proj(mixed)

    def _places(self, x: Tensor) -> Tensor:
        """Where each token is: (tokens, 1 + 2 grid), class token, row, column; ones and zeros."""
        eye = torch.eye(self.grid, dtype=x.dtype, device=x.device)
        rows, columns = eye.repeat_interleave(self.grid, 0), eye.repeat(self.grid, 1)
        return torch.block_diag(
            torch.ones(1, 1, dtype=x.dtype, device=x.device), torch.cat((rows, columns), dim=1)
        )

    def _query_features(self, q: Tensor) -> Tensor:
        """What each place adds to the scores of each query: (B, heads, tokens, 1 + 2 grid)."""
        rows, columns, class_entry = self.rel_pos_embed_k()
        patches = q[:, :, 1:].unflatten(2, (self.grid, self.grid))
        to_rows = patches @ rows.transpose(1, 2)
        to_columns = (patches.transpose(2, 3) @ columns.transpose(1, 2)).transpose(2, 3)
        to_class = patches @ class_entry[:, None]
        features = torch.cat((to_class, to_rows, to_columns), dim=-1).flatten(2, 3)
        # The class token's query adds the same number to all its scores: softmax ignores that.
        return F.pad(features, (0, 0, 1, 0))

    def _mixed_positions(self, places: Tensor) -> Tensor:
        """The values' embeddings, weighted by attention: (B, heads, tokens, head_dim)."""
        rows, columns, class_entry = self.rel_pos_embed_v()
        collected = places[:, :, 1:].unflatten(2, (self.grid, self.grid))
        on_class, on_rows, on_columns = collected.split((1, self.grid, self.grid), dim=-1)
        by_row = on_rows @ rows
        by_column = (on_columns.transpose(2, 3) @ columns).transpose(2, 3)
        patches = (by_row + by_column + on_class * class_entry).flatten(2, 3)
        # All of the class token's attention falls on pairs that include the class token.
        first = class_entry.expand(*patches.shape[:2], 1, -1)
        return torch.cat((first, patches), dim=2)


class _Block(nn.Module):
    def __init__(self, config: AutoFormerConfig, width: int, sizes: BlockSizes) -> None:
        super().__init__()
        self.attn_layer_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = _Attention(config, width, sizes)
        self.ffn_layer_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = nn.Linear(width, sizes.hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(sizes.hidden, width)
        self.factor = sizes.mlp_factor

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_layer_norm(x))
        mixed = self.fc2(self.act(self.fc1(self.ffn_layer_norm(x))))
        return x + (mixed if self.factor == 1.0 else mixed * self.factor)


class _PatchEmbed(nn.Module):
    def __init__(self, config: AutoFormerConfig, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_chans, width, config.patch_size, stride=config.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class PlainAutoFormer(nn.Module):
    """An AutoFormer of given sizes; every block may have its own heads and hidden width.

    Args:
        config: What the whole supernet shares.
        width: Embedding width.
        blocks: Sizes of each block.
    """

    def __init__(self, config: AutoFormerConfig, width: int, blocks: list[BlockSizes]) -> None:
        super().__init__()
        self.mean = config.gp
        self.patch_embed = _PatchEmbed(config, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        if not config.no_abs_pos:
            self.pos_embed = nn.Parameter(torch.empty(1, config.tokens, width))
        self.blocks = nn.Sequential(*(_Block(config, width, sizes) for sizes in blocks))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if hasattr(self, "pos_embed"):
            x = x + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 1:].mean(dim=1) if self.mean else x[:, 0])
