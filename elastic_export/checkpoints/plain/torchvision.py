"""torchvision's ViT, Swin, VGG and ConvNeXt; its ResNets have timm's names already."""

from __future__ import annotations

import re

from elastic_export.checkpoints.plain.names import (
    Named,
    finish,
    no_classifier,
    stages_in,
    tensor_names,
)
from elastic_export.checkpoints.plain.names_timm import from_timm, swin_indices
from elastic_export.checkpoints.reader import Imported, Keys, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import state_dict_of
from elastic_export.errors import UserError

__all__ = ["TorchvisionReader"]

# What only a network of that kind holds.
_MARKS = {
    "vit": "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
    "swin": "features.1.0.attn.relative_position_bias_table",
    "convnext": "features.1.0.block.0.weight",
    "vgg": "features.0.weight",
}
_LAST = {
    "vit": "heads.head.weight",
    "swin": "head.weight",
    "convnext": "classifier.2.weight",
    "vgg": "classifier.0.weight",
}


@register_reader
class TorchvisionReader(Reader):
    """Names as ``torchvision.models`` has them."""

    name = "torchvision"
    system = "a plain network with torchvision's names (pytorch/vision)"

    def claims(self, source: Source) -> bool:
        """A ViT, Swin or ConvNeXt by a layer of its own; a VGG by its first and last layers."""
        names = tensor_names(source)
        own = any(mark in names for family, mark in _MARKS.items() if family != "vgg")
        return own or {_MARKS["vgg"], _LAST["vgg"]} <= names

    def read(self, source: Source) -> Imported:
        """Rename; eps and the like are those of torchvision's code."""
        found = state_dict_of(source.loaded)
        keys = Keys(found.tensors, source.path)
        family = next((name for name, mark in _MARKS.items() if mark in keys), "")
        if family and _LAST[family] not in keys:
            raise no_classifier(source, _LAST[family])
        if family == "vit":
            named = _vit(keys)
        elif family == "swin":
            named = _swin(source, keys)
        elif family == "convnext":
            named = _convnext(keys)
        elif family == "vgg":
            named = Named("vgg", found.tensors)
        else:
            named = from_timm(source, found.tensors)
        return finish(source, found, named, self.name)


def _vit(keys: Keys) -> Named:
    layer = r"encoder\.layers\.encoder_layer_(\d+)"
    tensors = keys.rename(
        (r"class_token", "cls_token"),
        (r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
        (r"encoder\.pos_embedding", "pos_embed"),
        (rf"{layer}\.ln_1\.(.*)", r"blocks.\1.norm1.\2"),
        (rf"{layer}\.self_attention\.in_proj_(.*)", r"blocks.\1.attn.qkv.\2"),
        (rf"{layer}\.self_attention\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
        (rf"{layer}\.ln_2\.(.*)", r"blocks.\1.norm2.\2"),
        (rf"{layer}\.mlp\.(?:0|linear_1)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
        (rf"{layer}\.mlp\.(?:3|linear_2)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
        (r"encoder\.ln\.(.*)", r"norm.\1"),
        (r"heads\.head\.(.*)", r"head.\1"),
    )
    return Named("vit", tensors, assumed={"norm_eps": 1e-6}, ignored=keys.finish())


def _swin(source: Source, keys: Keys) -> Named:
    if any(name.endswith("logit_scale") for name in keys):
        raise UserError(
            f"{source.path} is a Swin V2, which no family builds.", "Use a Swin (V1) checkpoint."
        )
    known = swin_indices(keys, r"features\..*\.relative_position_index")
    rules: list[tuple[str, str]] = [
        (r"features\.0\.0\.(.*)", r"patch_embed.proj.\1"),
        (r"features\.0\.2\.(.*)", r"patch_embed.norm.\1"),
    ]
    for s in range(stages_in(keys, r"features\.(\d+)\.") // 2 + 1):
        block = rf"features\.{2 * s + 1}\.(\d+)"
        rules += [
            (rf"{block}\.mlp\.0\.(.*)", rf"layers.{s}.blocks.\1.mlp.fc1.\2"),
            (rf"{block}\.mlp\.3\.(.*)", rf"layers.{s}.blocks.\1.mlp.fc2.\2"),
            (rf"{block}\.(.*)", rf"layers.{s}.blocks.\1.\2"),
            (rf"features\.{2 * s + 2}\.(.*)", rf"layers.{s}.downsample.\1"),
        ]
    tensors = keys.rename(*rules, (r"((?:norm|head)\..*)", r"\1"))
    return Named("swin", tensors, known=known, assumed={"norm_eps": 1e-5}, ignored=keys.finish())


def _convnext(keys: Keys) -> Named:
    rules: list[tuple[str, str]] = [
        (r"features\.0\.([01])\.(.*)", r"stem.\1.\2"),
        (r"classifier\.0\.(.*)", r"head.norm.\1"),
        (r"classifier\.2\.(.*)", r"head.fc.\1"),
    ]
    parts = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}
    for s in range(stages_in(keys, r"features\.(\d+)\.") // 2 + 1):
        block = rf"features\.{2 * s + 1}\.(\d+)"
        rules += [
            (rf"{block}\.block\.{number}\.(.*)", rf"stages.{s}.blocks.\1.{part}.\2")
            for number, part in parts.items()
        ]
        rules.append((rf"{block}\.layer_scale", rf"stages.{s}.blocks.\1.gamma"))
        rules.append((rf"features\.{2 * s}\.([01])\.(.*)", rf"stages.{s}.downsample.\1.\2"))
    tensors = {
        name: tensor.flatten() if re.search(r"\.gamma$", name) else tensor
        for name, tensor in keys.rename(*rules).items()
    }
    return Named("convnext", tensors, assumed={"norm_eps": 1e-6}, ignored=keys.finish())
