"""timm's names, older and newer, made the names of our families.

timm (huggingface/pytorch-image-models) names ViT, ResNet and ConvNeXt as our families do. Its VGG
has convolutions where torchvision has linear layers, its Swin puts the merging at the start of
the next stage (before 0.9, and in Microsoft's files, at the end of its own), small ConvNeXts have
1x1 convolutions for linear layers, and DeiT III's positions leave out the class token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from elastic_export.checkpoints.plain.names import Named, no_classifier
from elastic_export.checkpoints.reader import Keys, Source
from elastic_export.errors import UserError
from elastic_export.families import families

__all__ = ["from_timm", "swin_indices"]

_BODIES = {
    "vit": ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed"),
    "swin": ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table"),
    "resnet": ("bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight"),
    "convnext": ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
}
_LAST = {
    "vit": ("head.weight",),
    "swin": ("head.weight", "head.fc.weight"),
    "resnet": ("fc.weight",),
    "convnext": ("head.fc.weight",),
}


def from_timm(source: Source, tensors: Mapping[str, Tensor]) -> Named:
    """Find the family and rename.

    Raises:
        UserError: The names are of no family, or there is no classifier.
    """
    keys = Keys(tensors, source.path)
    if "pre_logits.fc1.weight" in keys:
        return _vgg(source, keys)
    for family, marks in _BODIES.items():
        if all(mark in keys for mark in marks):
            if not any(name in keys for name in _LAST[family]):
                raise no_classifier(source, _LAST[family][0])
            named = Named(family, dict(tensors))
            if family == "swin":
                named = _swin(keys)
            elif family == "convnext":
                named.tensors = _linear(tensors)
            elif family == "vit":
                named.tensors = _positions(tensors)
            return named
    matching = [n for n, f in families().items() if all(mark in keys for mark in f.marks)]
    if not matching and source.family is None:
        examples = ", ".join(list(tensors)[:3])
        raise UserError(
            f"{source.path} holds {len(tensors)} tensors ({examples}, ...), which are of no known "
            "family.",
            f"Known families with timm's names: {', '.join(sorted((*_BODIES, 'vgg')))}.",
        )
    return Named(matching[0] if matching else "", dict(tensors))


def _vgg(source: Source, keys: Keys) -> Named:
    if "head.fc.weight" not in keys:
        raise no_classifier(source, "head.fc.weight")
    kernel = keys.shape("pre_logits.fc1.weight")[-1]
    tensors = keys.rename(
        (r"(features\..*)", r"\1"),
        (r"pre_logits\.fc1\.(.*)", r"classifier.0.\1"),
        (r"pre_logits\.fc2\.(.*)", r"classifier.3.\1"),
        (r"head\.fc\.(.*)", r"classifier.6.\1"),
    )
    keys.finish()
    tensors = {n: t.flatten(1) if t.dim() == 4 and n[0] == "c" else t for n, t in tensors.items()}
    named = Named("vgg", tensors, known={"pool": kernel})
    poolings = _poolings(tensors)
    size = source.config.get("image_size", 224)
    if isinstance(size, int) and (size >> poolings) > kernel:
        raise UserError(
            f"At {size} pixels timm's VGG applies its hidden layers at several places, which "
            "family vgg does not.",
            f"Set image_size to {kernel << poolings} or less.",
        )
    return named


def _poolings(tensors: Mapping[str, Tensor]) -> int:
    """How many layers have no tensors: the ReLUs, one a convolution, aside, these pool."""
    convs = [n for n, t in tensors.items() if n.startswith("features") and t.dim() == 4]
    last = max(int(name.split(".")[1]) for name in convs)
    per_conv = 3 if "features.1.running_mean" in tensors else 2
    return last + per_conv - per_conv * len(convs) + 1


def _linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """1x1 convolutions of the MLPs as the linear layers they are."""
    return {
        name: tensor.flatten(1)
        if re.search(r"\.mlp\.fc[12]\.weight$", name) and tensor.shape[2:] == (1, 1)
        else tensor
        for name, tensor in tensors.items()
    }


def _positions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Positions for every token: zero for those that timm's ``no_embed_class`` leaves out."""
    positions = tensors["pos_embed"]
    if positions.dim() != 3:
        return dict(tensors)
    prefix = sum(
        tensors[name].shape[1]
        for name in ("cls_token", "dist_token", "reg_token")
        if name in tensors and tensors[name].dim() == 3
    )
    count = positions.shape[1]
    if count > prefix and math.isqrt(count - prefix) ** 2 == count - prefix:
        return dict(tensors)
    if math.isqrt(count) ** 2 != count:
        return dict(tensors)
    zeros = positions.new_zeros(1, prefix, positions.shape[2])
    return {**tensors, "pos_embed": torch.cat([zeros, positions], dim=1)}


def _swin(keys: Keys) -> Named:
    known = swin_indices(keys, r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_index")
    sizes = [(int(m[1]), keys.shape(name)) for name in keys if (m := re.fullmatch(_MASK, name))]
    if sizes:
        stage, (windows, places, _) = sizes[0]
        patch = keys.shape("patch_embed.proj.weight")[-1]
        side = math.isqrt(windows) * math.isqrt(places)
        known["image_size"] = (side << stage) * patch
    keys.ignore(_MASK, "follows from the sizes")
    rules: list[tuple[str, str]] = []
    if "layers.0.downsample.reduction.weight" not in keys:  # timm since 0.9
        stages = {int(m[1]) for name in keys if (m := re.match(r"layers\.(\d+)\.", name))}
        rules = [
            (rf"layers\.{s}\.downsample\.(.*)", rf"layers.{s - 1}.downsample.\1")
            for s in sorted(stages)
        ]
    tensors = keys.rename(*rules, (r"head\.fc\.(.*)", r"head.\1"), (r"(.*)", r"\1"))
    return Named("swin", tensors, known=known, ignored=keys.finish())


_MASK = r"layers\.(\d+)\.blocks\.\d+\.attn_mask"


def swin_indices(keys: Keys, pattern: str) -> dict[str, int]:
    """Check and leave out the index tables of a Swin; the window they tell is returned.

    Raises:
        UserError: A table is not the one that follows from its window.
    """
    found: dict[str, int] = {}
    for name in [name for name in keys if re.fullmatch(pattern, name)]:
        index = keys.take(name)
        window = math.isqrt(math.isqrt(index.numel()))
        place = torch.stack(
            torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        ).flatten(1)
        offset = place[:, :, None] - place[:, None, :] + window - 1
        wanted = offset[0] * (2 * window - 1) + offset[1]
        if index.numel() != wanted.numel() or not torch.equal(index.reshape(wanted.shape), wanted):
            raise UserError(
                f"{name} is not the index table of {window} x {window} windows.",
                "The file is damaged, or its network orders positions in another way.",
            )
        keys.ignored[name] = "follows from the window"
        found["window"] = max(window, found.get("window", 0))
    return found
