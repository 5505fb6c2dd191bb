"""The plain ViT: timm's parameter names, static shapes, ordinary layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_export.families.vit.config import VitConfig

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
        self.prefix = config.prefix_tokens
        self.distilled = config.distilled
        self.patch_embed = _PatchEmbed(config, width)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.empty(1, 1, width))
        if config.reg_tokens:
            self.reg_token = nn.Parameter(torch.empty(1, config.reg_tokens, width))
        self.pos_embed = nn.Parameter(torch.empty(1, config.tokens, width))
        self.keep, self.form = config.token_keep, config.token_form
        if config.token_keep:
            self.token_score = nn.Linear(width, 1)
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
        if self.keep is not None:
            x = self._select(x, self.keep)
        x = self.norm(self.blocks(x))
        if self.distilled:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        x = x[:, self.prefix :].mean(dim=1) if self.pool == "avg" else x[:, 0]
        return self.head(self.fc_norm(x))

    def _select(self, x: Tensor, keep: int) -> Tensor:
        """Leave the tokens (B, N, width) with the best scores; see ``VitConfig``."""
        scores, first = self.token_score(x).squeeze(-1), self.prefix
        if self.form == "zero":
            best = scores.topk(keep, dim=1).indices
            mask = torch.zeros_like(scores).scatter(1, best, 1.0)
            if self.training:
                mask = mask + _straight_through(scores)
            others = x[:, first:] * mask[:, first:].unsqueeze(-1)
        else:
            best = scores[:, first:].topk(keep - first, dim=1).indices
            if self.training:
                x = x * (1 + _straight_through(scores)).unsqueeze(-1)
            others = x[:, first:].gather(1, best.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return torch.cat([x[:, :first], others], dim=1)


def _straight_through(scores: Tensor) -> Tensor:
    """Zeros with the gradient of a softmax, so that scores learn although the choice is hard."""
    soft = scores.softmax(dim=-1)
    return soft - soft.detach()
