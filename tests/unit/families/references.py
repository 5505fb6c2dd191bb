"""Independent references: a full-size timm network in which everything outside a spec is masked.

Nothing here uses slice rules. Weights beyond the spec are set to zero in a copy of the largest
network, and the layer norms of a ViT average over the active channels alone.
"""

from __future__ import annotations

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from elastic_export.families.resnet import ResNetConfig
from elastic_export.families.vit import VitConfig
from elastic_export.space import Spec


class MaskedNorm(nn.Module):
    """A layer norm over the first ``active`` channels; the others come out as zero."""

    def __init__(self, norm: nn.LayerNorm, active: int) -> None:
        super().__init__()
        self.norm, self.active = norm, active

    def forward(self, x: Tensor) -> Tensor:
        part = x[..., : self.active]
        centred = part - part.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + self.norm.eps).sqrt()
        out = torch.zeros_like(x)
        affine = scaled * self.norm.weight[: self.active] + self.norm.bias[: self.active]
        out[..., : self.active] = affine
        return out


def timm_vit(config: VitConfig, width: int, depth: int, heads: int, ratio: float) -> nn.Module:
    """timm's own ViT of uniform sizes."""
    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=config.num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=ratio,
        qkv_bias=config.qkv_bias,
        class_token=config.class_token,
        reg_tokens=config.reg_tokens,
        global_pool=config.global_pool,
        init_values=1e-5 if config.layer_scale else None,
    ).eval()


def masked_vit(config: VitConfig, state: dict[str, Tensor], spec: Spec) -> nn.Module:
    """The largest ViT with everything outside ``spec`` masked."""
    big, width = max(config.width), int(spec["width"])
    net = timm_vit(config, big, max(config.depth), max(config.heads), max(config.mlp_ratio))
    net.load_state_dict(state)
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            along = {
                "cls_token": -1,
                "reg_token": -1,
                "pos_embed": -1,
                "patch_embed.proj.weight": 0,
                "patch_embed.proj.bias": 0,
            }.get(name)
            if name.endswith(("attn.proj.weight", "attn.proj.bias", "fc2.weight", "fc2.bias")):
                along = 0
            if along is not None:
                tensor.movedim(along, 0)[width:] = 0
        for i, block in enumerate(net.blocks):
            if i >= int(spec["depth"]):
                for layer in (block.attn.proj, block.mlp.fc2):
                    layer.weight.zero_(), layer.bias.zero_()
                continue
            inner = int(spec[f"blocks.{i}.heads"]) * config.dim_of_head
            hidden = config.hidden(width, float(spec[f"blocks.{i}.mlp_ratio"]))
            block.attn.proj.weight[:, inner:] = 0
            block.mlp.fc2.weight[:, hidden:] = 0
            block.norm1 = MaskedNorm(block.norm1, width)
            block.norm2 = MaskedNorm(block.norm2, width)
    for name in ("norm", "fc_norm"):
        if isinstance(getattr(net, name), nn.LayerNorm):
            setattr(net, name, MaskedNorm(getattr(net, name), width))
    return net


def timm_resnet(config: ResNetConfig) -> nn.Module:
    """timm's own ResNet of the largest sizes."""
    kinds = {"basic": BasicBlock, "bottleneck": Bottleneck}
    stages = config.stages
    planes = tuple(max(s.width) // (4 if s.block == "bottleneck" else 1) for s in stages)
    deep = config.stem_type == "deep"
    return TimmResNet(
        block=[kinds[s.block] for s in stages],
        layers=tuple(max(s.depth) for s in stages),
        num_classes=config.num_classes,
        in_chans=config.in_chans,
        channels=planes,
        stem_type="deep" if deep else "",
        stem_width=max(config.stem) // (2 if deep else 1),
        avg_down=config.avg_down,
    ).eval()


def masked_resnet(config: ResNetConfig, state: dict[str, Tensor], spec: Spec) -> nn.Module:
    """The largest ResNet with everything outside ``spec`` masked: dead channels put out zero."""
    net = timm_resnet(config)
    net.load_state_dict(state)

    def kill(norm: nn.BatchNorm2d, start: int) -> None:
        norm.weight[start:] = 0
        norm.bias[start:] = 0

    with torch.no_grad():
        stem = int(spec.get("stem", spec["layer1.width"]))
        if config.stem_type == "deep":
            kill(net.conv1[1], stem // 2)
            kill(net.conv1[4], stem // 2)
        kill(net.bn1, stem)
        for s in range(1, len(config.stages) + 1):
            width = int(spec[f"layer{s}.width"])
            for b, block in enumerate(getattr(net, f"layer{s}")):
                last = block.bn3 if hasattr(block, "bn3") else block.bn2
                if b >= int(spec[f"layer{s}.depth"]):
                    kill(last, 0)
                    continue
                inner = config.inner(width, float(spec[f"layer{s}.{b}.expand"]))
                kill(block.bn1, inner)
                if hasattr(block, "bn3"):
                    kill(block.bn2, inner)
                kill(last, width)
                if block.downsample is not None:
                    kill(block.downsample[-1], width)
    return net
