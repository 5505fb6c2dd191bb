"""Independent references for VGG (torchvision) and ConvNeXt (timm), masked to a spec."""

from __future__ import annotations

import torch
from references import MaskedNorm
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn
from torchvision.models.vgg import VGG, make_layers

from elastic_export.families.convnext import ConvNextConfig
from elastic_export.families.convnext.config import hidden
from elastic_export.families.vgg import VggConfig
from elastic_export.space import Spec


def torchvision_vgg(config: VggConfig) -> nn.Module:
    """torchvision's own VGG of the largest sizes."""
    cfg = [item if item == "M" else max(item) for item in config.cfg]
    features = make_layers(cfg, batch_norm=config.norm)
    if not config.conv_bias:
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                layer.bias = None
    with torch.device("meta"):  # its 4096 wide layers are replaced
        net = VGG(features, num_classes=config.num_classes, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(config.pool)
    layers: list[nn.Module] = []
    size = [width for width in cfg if width != "M"][-1] * config.pool**2
    for sizes in config.fc:
        layers += [nn.Linear(size, max(sizes)), nn.ReLU(), nn.Dropout()]
        size = max(sizes)
    net.classifier = nn.Sequential(*layers, nn.Linear(size, config.num_classes))
    return net.eval()


def masked_vgg(config: VggConfig, state: dict[str, Tensor], spec: Spec) -> nn.Module:
    """The largest VGG with everything outside ``spec`` masked: dead channels put out zero."""
    net = torchvision_vgg(config)
    net.load_state_dict(state)
    with torch.no_grad():
        for name, width in spec.items():
            place = name.rsplit(".", 1)[0]
            layers = [net.get_submodule(place)]
            if config.norm and name.startswith("features"):
                number = int(place.split(".")[1])
                layers.append(net.features[number + 1])
            for layer in layers:
                layer.weight[int(width) :] = 0
                if layer.bias is not None:
                    layer.bias[int(width) :] = 0
            if len(layers) == 2:  # a mean of zero keeps a dead channel at zero
                layers[1].running_mean[int(width) :] = 0
    return net


class MaskedMap(nn.Module):
    """A :class:`MaskedNorm` over the channels of (B, C, H, W)."""

    def __init__(self, norm: nn.LayerNorm, active: int) -> None:
        super().__init__()
        self.norm = MaskedNorm(norm, active)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class MaskedResponse(nn.Module):
    """timm's global response norm over the first ``active`` channels."""

    def __init__(self, norm: nn.Module, active: int) -> None:
        super().__init__()
        self.norm, self.active = norm, active

    def forward(self, x: Tensor) -> Tensor:
        length = x.pow(2).sum((1, 2), keepdim=True).sqrt()
        mean = length[..., : self.active].mean(-1, keepdim=True)
        return x + self.norm.bias + self.norm.weight * (x * length / (mean + 1e-6))


def timm_convnext(config: ConvNextConfig) -> nn.Module:
    """timm's own ConvNeXt of the largest sizes."""
    net = ConvNeXt(
        in_chans=config.in_chans,
        num_classes=config.num_classes,
        depths=tuple(max(s.depth) for s in config.stages),
        dims=tuple(max(s.width) for s in config.stages),
        kernel_sizes=config.kernel_size,
        patch_size=config.patch_size,
        ls_init_value=1e-6 if config.layer_scale else None,
        use_grn=config.grn,
        norm_eps=config.norm_eps,
    )
    net.head.norm.eps = config.head_norm_eps or config.norm_eps
    return net.eval()


def masked_convnext(config: ConvNextConfig, state: dict[str, Tensor], spec: Spec) -> nn.Module:
    """The largest ConvNeXt with everything outside ``spec`` masked."""
    net = timm_convnext(config)
    for s, stage in enumerate(config.stages):  # timm takes one ratio for all
        for block in net.stages[s].blocks:
            width = max(stage.width)
            size = hidden(width, max(stage.mlp_ratio))
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, size), nn.Linear(size, width)
            if config.grn:
                block.mlp.grn.weight = nn.Parameter(torch.zeros(size))
                block.mlp.grn.bias = nn.Parameter(torch.zeros(size))
    net.load_state_dict(state)
    with torch.no_grad():
        width = int(spec["stages.0.width"])
        net.stem[0].weight[width:] = 0
        net.stem[0].bias[width:] = 0
        net.stem[1] = MaskedMap(net.stem[1], width)
        for s, stage in enumerate(net.stages):
            if s:
                stage.downsample[0] = MaskedMap(stage.downsample[0], width)
                width = int(spec[f"stages.{s}.width"])
                stage.downsample[1].weight[width:] = 0
                stage.downsample[1].bias[width:] = 0
            for b, block in enumerate(stage.blocks):
                block.norm = MaskedNorm(block.norm, width)
                block.mlp.fc2.weight[width:] = 0
                block.mlp.fc2.bias[width:] = 0
                if b >= int(spec[f"stages.{s}.depth"]):
                    block.mlp.fc2.weight.zero_()
                    block.mlp.fc2.bias.zero_()
                    continue
                ratio = float(spec[f"stages.{s}.blocks.{b}.mlp_ratio"])
                inner = hidden(width, ratio)
                block.mlp.fc2.weight[:, inner:] = 0
                if config.grn:
                    block.mlp.grn = MaskedResponse(block.mlp.grn, inner)
        net.head.norm = MaskedMap(net.head.norm, width)
    return net
