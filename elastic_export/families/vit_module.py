"""The plain ViT: timm's parameter names, static shapes, ordinary layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_export.families.vit_config import VitConfig

__all__ = ["PlainVit"]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=bias)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        # Chunks become one Split in ONNX, where timm's unbind becomes six nodes.
        q, k, v = (
            part.reshape(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, config: VitConfig, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = _Attention(width, heads, config.dim_of_head, config.qkv_bias)
        self.ls1 = _LayerScale(width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = _Mlp(width, hidden)
        self.ls2 = _LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbed(nn.Module):
    def __init__(self, config: VitConfig, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_chans, width, config.patch_size, stride=config.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class PlainVit(nn.Module):
    """A ViT of given sizes; every block may have its own heads and hidden width.

    Args:
        config: What the whole supernet shares.
        width: Embedding width.
        heads: Heads of each block.
        hidden: Hidden width of each block's MLP.
    """

    def __init__(self, config: VitConfig, width: int, heads: list[int], hidden: list[int]) -> None:
        super().__init__()
        self.pool = config.global_pool
        self.prefix = int(config.class_token) + int(config.distilled) + config.reg_tokens
        self.distilled = config.distilled
        self.patch_embed = _PatchEmbed(config, width)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.empty(1, 1, width))
        if config.reg_tokens:
            self.reg_token = nn.Parameter(torch.empty(1, config.reg_tokens, width))
        self.pos_embed = nn.Parameter(torch.empty(1, config.tokens, width))
        self.blocks = nn.Sequential(
            *(_Block(config, width, h, n) for h, n in zip(heads, hidden, strict=True))
        )
        average = config.global_pool == "avg"
        norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.norm = nn.Identity() if average else norm
        self.fc_norm = norm if average else nn.Identity()
        self.head = nn.Linear(width, config.num_classes)
        if config.distilled:
            self.head_dist = nn.Linear(width, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = self.patch_embed(x)
        tokens = [
            getattr(self, name).expand(x.shape[0], -1, -1)
            for name in ("cls_token", "dist_token", "reg_token")
            if hasattr(self, name)
        ]
        x = torch.cat([*tokens, x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        if self.distilled:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        x = x[:, self.prefix :].mean(dim=1) if self.pool == "avg" else x[:, 0]
        return self.head(self.fc_norm(x))
