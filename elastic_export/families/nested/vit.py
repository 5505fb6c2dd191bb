"""The ViT as a base of nested levels: embedding, head width and hidden width shrink together.

Source of the shape of levels: sudaksh14/Elastoformer on GitHub (no paper). Depth and the number of
heads stay, the same offsets leave every head.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from elastic_export.elastic.family import Dim, Layout
from elastic_export.families.base import Count, ImageConfig
from elastic_export.families.nested.network import Level, Network
from elastic_export.families.vit.config import VitConfig
from elastic_export.families.vit.module import PlainVit

__all__ = ["VitNetwork"]


class VitNetwork(Network):
    """What all levels of a ViT share.

    Groups: ``embed``, and for each block ``blocks.N.inner`` (all heads together) and
    ``blocks.N.hidden``.
    """

    arch: Literal["vit"] = "vit"
    patch_size: Count = 16
    depth: Count = 12
    qkv_bias: bool = True
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6

    def layout(self, number: int) -> Layout:
        """Names as timm has them; packed rows of ``qkv`` are three blocks."""
        e = Dim("embed")
        layout: dict[str, tuple[Dim | None, ...]] = {
            "cls_token": (None, None, e),
            "pos_embed": (None, None, e),
            "patch_embed.proj.weight": (e, None, None, None),
            "patch_embed.proj.bias": (e,),
        }
        for i in range(self.depth):
            b = f"blocks.{i}"
            inner, hidden = Dim(f"{b}.inner"), Dim(f"{b}.hidden")
            packed = Dim(f"{b}.inner", blocks=3)
            for norm in ("norm1", "norm2"):
                layout |= {f"{b}.{norm}.weight": (e,), f"{b}.{norm}.bias": (e,)}
            layout |= {f"{b}.attn.qkv.weight": (packed, e)}
            layout |= {f"{b}.attn.qkv.bias": (packed,)} if self.qkv_bias else {}
            layout |= {
                f"{b}.attn.proj.weight": (e, inner),
                f"{b}.attn.proj.bias": (e,),
                f"{b}.mlp.fc1.weight": (hidden, e),
                f"{b}.mlp.fc1.bias": (hidden,),
                f"{b}.mlp.fc2.weight": (e, hidden),
                f"{b}.mlp.fc2.bias": (e,),
            }
        return layout | {
            "norm.weight": (e,),
            "norm.bias": (e,),
            "head.weight": (None, e),
            "head.bias": (None,),
        }

    def plain(self, image: ImageConfig, level: Level, number: int) -> nn.Module:
        """Blocks may differ in the width of their heads."""
        width, heads = level.size("embed"), level.heads or 1
        hidden = [level.size(f"blocks.{i}.hidden") for i in range(self.depth)]
        dims = [level.size(f"blocks.{i}.inner") // heads for i in range(self.depth)]

        def network(blocks: list[int], dim: int) -> PlainVit:
            sizes = [hidden[i] for i in blocks]
            return PlainVit(
                self._config(image, width, heads, dim), width, [heads] * len(sizes), sizes
            )

        net = network(list(range(self.depth)), dims[0])
        for i, dim in enumerate(dims):
            if dim != dims[0]:
                # A config has one head width for all blocks; a block of another one is built apart.
                net.blocks[i] = network([i], dim).blocks[0]
        return net

    def cost(self, image: ImageConfig, level: Level, number: int) -> tuple[int, int]:
        """Sum over blocks; the two attention products count."""
        patches = (image.image_size // self.patch_size) ** 2
        tokens, width = patches + 1, level.size("embed")
        pixels = image.in_chans * self.patch_size**2
        macs = patches * pixels * width + width * image.num_classes
        # Patch bias, class token, positions, final norm; then the head.
        params = width * (pixels + 1 + 1 + tokens + 2) + (width + 1) * image.num_classes
        for i in range(self.depth):
            inner, hidden = level.size(f"blocks.{i}.inner"), level.size(f"blocks.{i}.hidden")
            weights = 4 * inner * width + 2 * hidden * width
            macs += tokens * weights + 2 * tokens * tokens * inner
            params += weights + 3 * inner * self.qkv_bias + hidden + 6 * width
        return macs, params

    def check(self, image: ImageConfig, level: Level, number: int) -> None:
        """Heads must be given and divide every block's inner width."""
        if level.heads is None:
            raise ValueError(f"level {number + 1} needs heads")
        for i in range(self.depth):
            inner = level.size(f"blocks.{i}.inner")
            if inner % level.heads:
                raise ValueError(
                    f"level {number + 1}: {level.heads} heads do not divide the inner width "
                    f"{inner} of block {i}"
                )
        self._config(image, level.size("embed"), level.heads, 1)

    def _config(self, image: ImageConfig, width: int, heads: int, dim: int) -> VitConfig:
        return VitConfig(
            image_size=image.image_size,
            in_chans=image.in_chans,
            num_classes=image.num_classes,
            patch_size=self.patch_size,
            width=(width,),
            heads=(heads,),
            head_dim=dim,
            qkv_bias=self.qkv_bias,
            norm_eps=self.norm_eps,
        )
