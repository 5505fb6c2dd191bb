"""The plain Swin Transformer: static shapes, ordinary layers, the names of Microsoft's code.

Names (``s`` stage, ``b`` block, both from 0):

- ``patch_embed.proj``, ``patch_embed.norm`` (with ``patch_norm``), ``absolute_pos_embed`` (``ape``)
- ``layers.{s}.blocks.{b}.norm1``, ``.attn.qkv``, ``.attn.proj``, ``.norm2``, ``.mlp.fc1``,
  ``.mlp.fc2``
- ``layers.{s}.downsample.norm`` and ``.reduction``: the merging at the END of stage ``s``, missing
  in the last; timm has it at the start of stage ``s + 1``
- ``norm``, ``head`` (timm: ``head.fc``)

The supernet stores ``layers.{s}.blocks.{b}.attn.relative_position_bias_table``, shape
((2 window - 1)^2, heads), as all published files do. A plain module holds what is gathered from it,
``...attn.relative_position_bias`` (heads, window^2, window^2), and ``...blocks.{b}.attn_mask``
(windows, window^2, window^2), a buffer, in the blocks that shift. The packed ``qkv`` has the rows
of q, then k, then v, in each of them head after head. The merging joins the four neighbors in the
order (0, 0), (1, 0), (0, 1), (1, 1) of (row, column). Two more things are as in Microsoft's code:
GELU is the exact one, and the logits are those of the mean over all places, normalized before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elastic_export.families.swin.config import SwinConfig

__all__ = ["PlainSwin", "StageSizes"]


@dataclass(frozen=True)
class StageSizes:
    """Heads and hidden width of each block of one stage."""

    heads: tuple[int, ...]
    hidden: tuple[int, ...]


class _Attention(nn.Module):
    def __init__(
        self, config: SwinConfig, stage: int, width: int, heads: int, *, stored: bool
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, config.dim_of_head(stage)
        self.scale = config.qk_scale or self.head_dim**-0.5
        window = config.window_of(stage)
        self.qkv = nn.Linear(width, 3 * heads * self.head_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(heads * self.head_dim, width)
        if stored:
            table = torch.empty((2 * window - 1) ** 2, heads)
            self.relative_position_bias_table = nn.Parameter(table)
        else:
            bias = torch.empty(heads, window**2, window**2)
            self.relative_position_bias = nn.Parameter(bias)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Mix places (B * windows, N, width) within their window."""
        batch, places, _ = x.shape
        q, k, v = (
            part.reshape(batch, places, self.heads, self.head_dim).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        bias: Tensor = self.relative_position_bias
        if mask is not None:
            # Windows and heads share one dimension, so that attention keeps the four dimensions
            # that fused kernels want although each window has its own mask.
            bias = (bias + mask.unsqueeze(1).to(bias.dtype)).flatten(0, 1)
            shape = (-1, bias.shape[0], places, self.head_dim)
            q, k, v = q.reshape(shape), k.reshape(shape), v.reshape(shape)
        # Written out: torch's exporter fails on its fused attention with a mask.
        scores = (q * self.scale) @ k.transpose(-2, -1) + bias
        mixed = scores.softmax(dim=-1) @ v
        mixed = mixed.reshape(-1, self.heads, places, self.head_dim).transpose(1, 2)
        return self.proj(mixed.reshape(batch, places, -1))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Block(nn.Module):
    attn_mask: Tensor | None

    def __init__(
        self,
        config: SwinConfig,
        stage: int,
        block: int,
        width: int,
        heads: int,
        hidden: int,
        *,
        stored: bool,
    ) -> None:
        super().__init__()
        self.side, self.window = config.side(stage), config.window_of(stage)
        self.shift = config.shift_of(stage, block)
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = _Attention(config, stage, width, heads, stored=stored)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = _Mlp(width, hidden)
        if self.shift and not stored:
            windows, places = (self.side // self.window) ** 2, self.window**2
            self.register_buffer("attn_mask", torch.empty(windows, places, places))
        else:
            self.attn_mask = None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._windowed(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _windowed(self, x: Tensor) -> Tensor:
        """Attention of places (B, side^2, width) by windows."""
        _, _, width = x.shape
        side, window = self.side, self.window
        if window == side:
            return self.attn(x, None)
        count = side // window
        if self.shift:
            x = x.reshape(-1, side, side, width).roll((-self.shift, -self.shift), (1, 2))
        x = x.reshape(-1, count, window, count, window, width).transpose(2, 3)
        x = self.attn(x.reshape(-1, window**2, width), self.attn_mask)
        x = x.reshape(-1, count, count, window, window, width).transpose(2, 3)
        if self.shift:
            x = x.reshape(-1, side, side, width).roll((self.shift, self.shift), (1, 2))
        return x.reshape(-1, side**2, width)


class _Merging(nn.Module):
    def __init__(self, config: SwinConfig, stage: int, width: int) -> None:
        super().__init__()
        self.side = config.side(stage)
        self.norm = nn.LayerNorm(4 * width, eps=config.norm_eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Join 2 x 2 places: (B, side^2, width) becomes (B, side^2 / 4, 2 width)."""
        half, width = self.side // 2, x.shape[-1]
        x = x.reshape(-1, half, 2, half, 2, width).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(-1, half**2, 4 * width)))


class _Stage(nn.Module):
    def __init__(
        self, config: SwinConfig, stage: int, width: int, sizes: StageSizes, *, stored: bool
    ) -> None:
        super().__init__()
        pairs = enumerate(zip(sizes.heads, sizes.hidden, strict=True))
        self.blocks = nn.Sequential(
            *(_Block(config, stage, b, width, h, n, stored=stored) for b, (h, n) in pairs)
        )
        last = stage == len(config.stages) - 1
        self.downsample = nn.Identity() if last else _Merging(config, stage, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class _PatchEmbed(nn.Module):
    def __init__(self, config: SwinConfig, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_chans, width, config.patch_size, stride=config.patch_size)
        normed = config.patch_norm
        self.norm = nn.LayerNorm(width, eps=config.norm_eps) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class PlainSwin(nn.Module):
    """A Swin Transformer of given sizes; every block may have its own heads and hidden width.

    Args:
        config: What the whole supernet shares.
        width: Width of the first stage.
        sizes: Heads and hidden widths, stage by stage.
        stored: Hold the bias tables instead of what is gathered from them, and no masks: the
            tensors of a supernet's file. Such a module does not run.
    """

    def __init__(
        self, config: SwinConfig, width: int, sizes: list[StageSizes], *, stored: bool = False
    ) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(config, width)
        self.ape = config.ape
        if config.ape:
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, config.side(0) ** 2, width))
        widths = config.widths(width)
        self.layers = nn.Sequential(
            *(_Stage(config, s, widths[s], one, stored=stored) for s, one in enumerate(sizes))
        )
        self.norm = nn.LayerNorm(widths[-1], eps=config.norm_eps)
        self.head = nn.Linear(widths[-1], config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = self.patch_embed(x)
        if self.ape:
            x = x + self.absolute_pos_embed
        return self.head(self.norm(self.layers(x)).mean(dim=1))
