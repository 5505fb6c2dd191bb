"""An independent Swin: timm's full-size network in which everything outside a spec is masked."""

from __future__ import annotations

import re

import torch
from references import MaskedNorm
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from elastic_export.families.swin import SwinConfig
from elastic_export.space import Spec


class BlockNorm(nn.Module):
    """A layer norm over a prefix of each of four blocks of channels; the others come out zero."""

    def __init__(self, norm: nn.LayerNorm, active: int) -> None:
        super().__init__()
        self.norm, self.active = norm, active

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.zeros(4, x.shape[-1] // 4, dtype=torch.bool)
        keep[:, : self.active] = True
        keep = keep.flatten()
        part = x[..., keep]
        scaled = (part - part.mean(-1, keepdim=True)) / (
            part.var(-1, unbiased=False, keepdim=True) + self.norm.eps
        ).sqrt()
        out = torch.zeros_like(x)
        out[..., keep] = scaled * self.norm.weight[keep] + self.norm.bias[keep]
        return out


class AddPositions(nn.Module):
    """Patches, and positions as the original Swin adds them; timm has none."""

    def __init__(self, embed: nn.Module, positions: Tensor) -> None:
        super().__init__()
        self.embed, self.positions = embed, positions

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return x + self.positions.reshape(1, *x.shape[1:])


def timm_name(name: str) -> str:
    """Our name of a tensor as timm has it: merging begins a stage there."""
    name = re.sub(
        r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name
    )
    return re.sub(r"^head\.", "head.fc.", name)


def timm_swin(config: SwinConfig, state: dict[str, Tensor]) -> SwinTransformer:
    """timm's own Swin of the largest sizes, with these weights."""
    stages = config.stages
    net = SwinTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=config.num_classes,
        embed_dim=max(config.width),
        depths=tuple(max(stage.depth) for stage in stages),
        num_heads=tuple(max(stage.heads) for stage in stages),
        head_dim=tuple(config.dim_of_head(s) for s in range(len(stages))),
        window_size=config.window,
        mlp_ratio=tuple(max(stage.mlp_ratio) for stage in stages),
        qkv_bias=config.qkv_bias,
    )
    state = dict(state)
    positions = state.pop("absolute_pos_embed", None)
    if not config.patch_norm:
        net.patch_embed.norm = nn.Identity()
    net.load_state_dict({timm_name(name): tensor for name, tensor in state.items()})
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
            module.scale = config.qk_scale or module.scale
    net = net.to(next(iter(state.values())).dtype)
    if positions is not None:
        net.patch_embed = AddPositions(net.patch_embed, positions)
    return net.eval()


def masked_swin(config: SwinConfig, state: dict[str, Tensor], spec: Spec) -> nn.Module:
    """The largest Swin with everything outside ``spec`` masked."""
    state = {name: tensor.clone() for name, tensor in state.items()}
    widths = config.widths(int(spec["width"]))
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias"):
        state[name][widths[0] :] = 0
    if config.ape:
        state["absolute_pos_embed"][..., widths[0] :] = 0
    for s, b in config.places():
        block, width = f"layers.{s}.blocks.{b}", widths[s]
        live = b < int(spec[f"layers.{s}.depth"])
        for leaf in ("attn.proj", "mlp.fc2"):
            state[f"{block}.{leaf}.weight"][width if live else 0 :] = 0
            state[f"{block}.{leaf}.bias"][width if live else 0 :] = 0
        if live:
            inner = int(spec[f"{block}.heads"]) * config.dim_of_head(s)
            hidden = config.hidden(width, float(spec[f"{block}.mlp_ratio"]))
            state[f"{block}.attn.proj.weight"][:, inner:] = 0
            state[f"{block}.mlp.fc2.weight"][:, hidden:] = 0
    for s, width in enumerate(widths[1:]):
        state[f"layers.{s}.downsample.reduction.weight"][width:] = 0
    net = timm_swin(config, state)
    for s, stage in enumerate(net.layers):
        for block in stage.blocks:
            block.norm1 = MaskedNorm(block.norm1, widths[s])
            block.norm2 = MaskedNorm(block.norm2, widths[s])
        if s:
            stage.downsample.norm = BlockNorm(stage.downsample.norm, widths[s - 1])
    embed = net.patch_embed.embed if config.ape else net.patch_embed
    if config.patch_norm:
        embed.norm = MaskedNorm(embed.norm, widths[0])
    net.norm = MaskedNorm(net.norm, widths[-1])
    return net
