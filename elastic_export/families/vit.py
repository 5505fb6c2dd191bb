"""DeiT / ViT: embedding width, depth, heads, MLP ratio and N:M of each layer.

Plain modules have timm's parameter names and compute what timm's ``VisionTransformer`` computes
(Dosovitskiy et al., arXiv 2010.11929; Touvron et al., arXiv 2012.12877). A head is ``head_dim``
wide whatever the embedding width, as in AutoFormer, so attention may be narrower than the
embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from elastic_export.elastic.family import Dim, Layout
from elastic_export.elastic.skeleton import on_meta
from elastic_export.errors import UserError
from elastic_export.families.base import Count, ImageConfig, ImageFamily, Ratios, Sizes, ascending
from elastic_export.families.registry import register
from elastic_export.space import Axis, Costs, Space, Spec, density, hardware_density
from elastic_export.space.cost import reduction_block

__all__ = ["PlainVit", "Vit", "VitConfig"]

_LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
# A ratio read back from sizes (hidden / width) may lie a rounding error below the true one.
_ROUNDING = 1e-6


class VitConfig(ImageConfig):
    """Sizes and choices of one ViT supernet; a single choice makes a fixed part.

    Choices are listed from small to large. ``nm`` lists patterns from sparse to dense and applies
    to every qkv, proj, fc1 and fc2. ``head_dim`` defaults to the largest width over the largest
    number of heads. ``pos_std`` and ``init_std`` are the standard deviations that positions and the
    blocks' linear layers start from.
    """

    patch_size: Count = 16
    width: Sizes = (192,)
    depth: Sizes = (12,)
    heads: Sizes = (3,)
    mlp_ratio: Ratios = (4.0,)
    nm: Annotated[tuple[str, ...], Field(min_length=1)] = ("dense",)
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
        kept = [density(p) for p in self.nm]
        if kept != sorted(set(kept)):
            raise ValueError("nm must list different patterns from sparse to dense")
        inputs = {*self.width, *(h * self.dim_of_head for h in self.heads)}
        inputs |= {self.hidden(w, r) for w in self.width for r in self.mlp_ratio}
        for pattern in self.nm:
            odd = sorted(k for k in inputs if k % reduction_block(pattern))
            if odd:
                raise ValueError(f"{pattern} needs widths that are multiples of its M, not {odd}")
        return self

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
        return int(width * ratio + _ROUNDING)


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


@register
class Vit(ImageFamily):
    """The family ``vit``."""

    name = "vit"
    Config = VitConfig
    marks = ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight")

    def space(self, config: VitConfig) -> Space:
        """Axes ``width``, ``depth``, then for each block heads, MLP ratio and four patterns."""
        axes = [Axis("width", config.width), Axis("depth", config.depth)]
        for i in range(max(config.depth)):
            when = ("depth", i)
            axes.append(Axis(f"blocks.{i}.heads", config.heads, when))
            axes.append(Axis(f"blocks.{i}.mlp_ratio", config.mlp_ratio, when))
            if config.nm != ("dense",):
                axes += [Axis(f"blocks.{i}.{name}.nm", config.nm, when) for name in _LINEARS]
        return Space(axes)

    def skeleton(self, config: VitConfig, spec: Spec) -> PlainVit:
        """The plain ViT of a spec on meta."""
        width, blocks = int(spec["width"]), range(int(spec["depth"]))
        heads = [int(spec[f"blocks.{i}.heads"]) for i in blocks]
        hidden = [config.hidden(width, float(spec[f"blocks.{i}.mlp_ratio"])) for i in blocks]
        with on_meta():
            return PlainVit(config, width, heads, hidden).eval()

    def layout(self, config: VitConfig) -> Layout:
        """One group for the embedding, and for each block one for heads and one for hidden."""
        e = Dim("embed")
        layout: dict[str, tuple[Dim | None, ...]] = {
            "cls_token": (None, None, e),
            "dist_token": (None, None, e),
            "reg_token": (None, None, e),
            "pos_embed": (None, None, e),
            "patch_embed.proj.weight": (e, None, None, None),
            "patch_embed.proj.bias": (e,),
        }
        for norm in ("norm", "fc_norm"):
            layout |= {f"{norm}.weight": (e,), f"{norm}.bias": (e,)}
        for head in ("head", "head_dist"):
            layout |= {f"{head}.weight": (None, e), f"{head}.bias": (None,)}
        for i in range(max(config.depth)):
            b = f"blocks.{i}"
            qkv = Dim(f"{b}.heads", blocks=3)
            heads, hidden = Dim(f"{b}.heads"), Dim(f"{b}.hidden")
            for norm in ("norm1", "norm2"):
                layout |= {f"{b}.{norm}.weight": (e,), f"{b}.{norm}.bias": (e,)}
            layout |= {
                f"{b}.attn.qkv.weight": (qkv, e),
                f"{b}.attn.qkv.bias": (qkv,),
                f"{b}.attn.proj.weight": (e, heads),
                f"{b}.attn.proj.bias": (e,),
                f"{b}.ls1.gamma": (e,),
                f"{b}.mlp.fc1.weight": (hidden, e),
                f"{b}.mlp.fc1.bias": (hidden,),
                f"{b}.mlp.fc2.weight": (e, hidden),
                f"{b}.mlp.fc2.bias": (e,),
                f"{b}.ls2.gamma": (e,),
            }
        return layout

    def patterns(self, config: VitConfig, spec: Spec) -> dict[str, str]:
        """Patterns of the blocks' linear layers that are not dense."""
        return {
            f"{name.removesuffix('.nm')}.weight": str(value)
            for name, value in spec.items()
            if name.endswith(".nm") and value != "dense"
        }

    def costs(self, config: VitConfig, space: Space, genes: np.ndarray) -> Costs:
        """Sum over blocks; every individual of the population at once."""
        tokens, head_dim = config.tokens, config.dim_of_head
        width = space.values(genes, "width").astype(np.int64)
        depth = space.values(genes, "depth").astype(np.int64)
        patches = (config.image_size // config.patch_size) ** 2
        pixels = config.in_chans * config.patch_size**2
        heads_out = (1 + config.distilled) * config.num_classes
        fixed = patches * pixels * width + heads_out * width
        kinds = [fixed.copy(), fixed.astype(np.float64), fixed.astype(np.float64)]
        extra = config.tokens + (tokens - patches) + 2 + pixels + 1
        params = width * extra + heads_out * (width + 1)
        for i in range(max(config.depth)):
            live = (depth > i).astype(np.int64)
            inner = space.values(genes, f"blocks.{i}.heads").astype(np.int64) * head_dim
            ratio = space.values(genes, f"blocks.{i}.mlp_ratio").astype(np.float64)
            hidden = (width * ratio + _ROUNDING).astype(np.int64)
            weights = (3 * inner * width, inner * width, hidden * width, hidden * width)
            products = 2 * tokens * tokens * inner
            kinds[0] += live * (tokens * sum(weights) + products)
            for kind, share in ((1, density), (2, hardware_density)):
                kinds[kind] += live * products
                for name, count in zip(_LINEARS, weights, strict=True):
                    axis = f"blocks.{i}.{name}.nm"
                    kept: np.ndarray | float = 1.0
                    if axis in space.index:
                        kept = np.array([share(p) for p in config.nm])[genes[:, space.index[axis]]]
                    kinds[kind] += live * tokens * count * kept
            biases = 3 * inner * config.qkv_bias + width + hidden + width
            norms = width * (4 + 2 * config.layer_scale)
            params += live * (sum(weights) + biases + norms)
        return Costs(
            kinds[0], kinds[1].round().astype(np.int64), kinds[2].round().astype(np.int64), params
        )

    def initialise(self, config: VitConfig, module: nn.Module, generator: torch.Generator) -> None:
        """Clipped normal weights, zero biases; see ``init_std`` and ``pos_std``."""
        stds = {"pos_embed": config.pos_std}
        for name, tensor in module.named_parameters():
            with torch.no_grad():
                if re.search(r"norm\d?\.weight$", name):
                    tensor.fill_(1.0)
                elif name.endswith(".bias"):
                    tensor.zero_()
                elif name.endswith(".gamma"):
                    tensor.fill_(1e-5)
                elif name.startswith("patch_embed"):
                    bound = tensor[0].numel() ** -0.5
                    tensor.uniform_(-bound, bound, generator=generator)
                else:
                    std = config.init_std if name.startswith("blocks") else stds.get(name, 0.02)
                    tensor.normal_(0.0, std, generator=generator).clamp_(-2 * std, 2 * std)

    def fold_pairs(self, module: nn.Module) -> list[tuple[str, str]]:
        """None: a ViT has no BatchNorm."""
        return []

    def recognise(
        self, shapes: Mapping[str, tuple[int, ...]], hints: Mapping[str, Any]
    ) -> VitConfig:
        """Read sizes from timm's names; the head count must come from ``hints`` (``heads``)."""
        missing = [name for name in self.marks if name not in shapes]
        if missing:
            raise UserError(
                f"This is not a ViT checkpoint with timm's names: {missing[0]} is missing.",
                "Check model.family; inspect the file to see what it holds.",
            )
        width, in_chans, patch, _ = shapes["patch_embed.proj.weight"]
        indices = {int(m[1]) for k in shapes if (m := re.match(r"blocks\.(\d+)\.", k))}
        class_token, distilled = "cls_token" in shapes, "dist_token" in shapes
        registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
        patches = shapes["pos_embed"][1] - class_token - distilled - registers
        side = round(patches**0.5)
        if side * side != patches:
            raise UserError(
                f"The position embedding has {patches} patch entries, which is not a square grid.",
                "Only square inputs are read; convert the checkpoint first.",
            )
        inner = shapes["blocks.0.attn.qkv.weight"][0] // 3
        if "heads" not in hints and "head_dim" not in hints:
            raise UserError(
                "The number of heads is not stored in this checkpoint.",
                "Give it as model.config.heads in a recipe, or with --set heads=[3] on the command "
                "line (3 for DeiT-T).",
            )
        given = hints.get("heads", inner // int(hints.get("head_dim", 64)))
        heads = max(given) if isinstance(given, list | tuple) else int(given)
        found = {
            "image_size": side * patch,
            "patch_size": patch,
            "in_chans": in_chans,
            "num_classes": shapes["head.weight"][0],
            "width": (width,),
            "depth": (max(indices) + 1,),
            "heads": (heads,),
            "mlp_ratio": (shapes["blocks.0.mlp.fc1.weight"][0] / width,),
            "head_dim": inner // heads,
            "class_token": class_token,
            "reg_tokens": registers,
            "distilled": distilled,
            "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
            "layer_scale": "blocks.0.ls1.gamma" in shapes,
            "global_pool": "avg" if "fc_norm.weight" in shapes else "token",
        }
        return VitConfig.model_validate({**found, **hints})
