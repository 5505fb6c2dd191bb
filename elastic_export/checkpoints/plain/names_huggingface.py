"""The names of Hugging Face transformers, before and after version 5, made those of our families.

Facts from huggingface/transformers, ``models/{vit,deit,swin,resnet,convnext,convnextv2}``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from elastic_export.checkpoints.plain.names import stages_in
from elastic_export.checkpoints.plain.names_timm import swin_indices
from elastic_export.checkpoints.reader import Keys
from elastic_export.errors import UserError

__all__ = ["RENAMED", "kind_of"]

_PARTS = ("q", "k", "v")
_ATTENTION = (r"attention\.attention\.", r"attention\.self\.", r"attention\.")
# A name that only this family's networks have, whatever comes before it.
_MARKS = {
    "vit": (
        r"embeddings\.position_embeddings",
        r"(?:encoder\.)?layers?\.0\.layernorm_before\.weight",
    ),
    "swin": (
        r"embeddings\.patch_embeddings\.projection\.weight",
        r"encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight",
    ),
    "resnet": (
        r"embedder\.embedder\.convolution\.weight",
        r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight",
    ),
    "convnext": (
        r"embeddings\.patch_embeddings\.weight",
        r"encoder\.stages\.0\.layers\.0\.dwconv\.weight",
    ),
}


def kind_of(names: Collection[str]) -> str | None:
    """The family whose networks have such names; None if none has."""
    bare = {re.sub(r"^(?:vit|deit|swin|resnet|convnext|convnextv2)\.", "", name) for name in names}
    for family, marks in _MARKS.items():
        if all(any(re.fullmatch(mark, name) for name in bare) for mark in marks):
            return family
    return None


def _vit(keys: Keys) -> dict[str, Tensor]:
    at = r"(?:(?:vit|deit)\.)?"
    layer = rf"{at}(?:encoder\.)?layers?\.(\d+)"
    # Without a head of its own, the distillation token is one more token that only takes part.
    teacher = any(name.startswith("distillation_classifier.") for name in keys)
    tensors = keys.rename(
        (rf"{at}embeddings\.cls_token", "cls_token"),
        (rf"{at}embeddings\.distillation_token", "dist_token" if teacher else "reg_token"),
        (rf"{at}embeddings\.position_embeddings", "pos_embed"),
        (rf"{at}embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
        *_block(layer, r"blocks.\1", r"\2"),
        (rf"{at}layernorm\.(.*)", r"norm.\1"),
        (r"(?:cls_)?classifier\.(.*)", r"head.\1"),
        (r"distillation_classifier\.(.*)", r"head_dist.\1"),
    )
    return _fused(tensors)


def _swin(keys: Keys) -> dict[str, Tensor]:
    at = r"(?:swin\.)?"
    swin_indices(keys, r".*\.relative_position_index")
    stage = rf"{at}encoder\.layers\.(\d+)"
    block, new = rf"{stage}\.blocks\.(\d+)", r"layers.\1.blocks.\2"
    table = r"attention\..*relative_position_bias_table"
    tensors = keys.rename(
        (rf"{at}embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
        (rf"{at}embeddings\.norm\.(.*)", r"patch_embed.norm.\1"),
        (rf"{at}embeddings\.position_embeddings", "absolute_pos_embed"),
        (rf"{block}\.{table}", rf"{new}.attn.relative_position_bias_table"),
        *_block(block, new, r"\3"),
        (rf"{stage}\.downsample\.(.*)", r"layers.\1.downsample.\2"),
        (rf"{at}layernorm\.(.*)", r"norm.\1"),
        (r"classifier\.(.*)", r"head.\1"),
    )
    return _fused(tensors)


def _block(old: str, new: str, rest: str) -> list[tuple[str, str]]:
    """Rules for a transformer block; ``rest`` is the group behind those of ``old``."""
    rules = [
        (rf"{old}\.layernorm_before\.(.*)", f"{new}.norm1.{rest}"),
        (rf"{old}\.layernorm_after\.(.*)", f"{new}.norm2.{rest}"),
        (rf"{old}\.attention\.(?:output\.dense|o_proj)\.(.*)", f"{new}.attn.proj.{rest}"),
        (rf"{old}\.(?:intermediate\.dense|mlp\.fc1)\.(.*)", f"{new}.mlp.fc1.{rest}"),
        (rf"{old}\.(?:output\.dense|mlp\.fc2)\.(.*)", f"{new}.mlp.fc2.{rest}"),
    ]
    for part, word in zip(_PARTS, ("query", "key", "value"), strict=True):
        rules += [
            (rf"{old}\.{place}(?:{word}|{part}_proj)\.(.*)", f"{new}.{part}.{rest}")
            for place in _ATTENTION
        ]
    return rules


def _fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join q, k and v of each block, in this order; each is let go as soon as it is copied."""
    joined: dict[str, Tensor] = {}
    for name in list(tensors):
        place = re.fullmatch(r"(.*)\.q\.(weight|bias)", name)
        if place is None:
            continue
        names = [f"{place[1]}.{part}.{place[2]}" for part in _PARTS]
        shapes = {tuple(tensors[part].shape) for part in names if part in tensors}
        if len(shapes) != 1 or shapes == {()} or not all(part in tensors for part in names):
            raise UserError(
                f"The queries, keys and values of {place[1]} do not belong together: one is "
                "missing or has another shape.",
                "Copy or download the file again; pruned networks are not read.",
            )
        joined[f"{place[1]}.attn.qkv.{place[2]}"] = torch.cat([tensors.pop(n) for n in names])
    return {**tensors, **joined}


def _resnet(keys: Keys) -> dict[str, Tensor]:
    at = r"(?:resnet\.)?"
    embedder = rf"{at}embedder\.embedder"
    rules = [
        (rf"{embedder}\.convolution\.(.*)", r"conv1.\1"),
        (rf"{embedder}\.normalization\.(.*)", r"bn1.\1"),
        (r"classifier\.1\.(.*)", r"fc.\1"),
    ]
    for s in range(stages_in(keys, rf"{at}encoder\.stages\.(\d+)\.")):
        block = rf"{at}encoder\.stages\.{s}\.layers\.(\d+)"
        new = rf"layer{s + 1}.\1"
        for k in range(3):
            rules += [
                (rf"{block}\.layer\.{k}\.convolution\.(.*)", rf"{new}.conv{k + 1}.\2"),
                (rf"{block}\.layer\.{k}\.normalization\.(.*)", rf"{new}.bn{k + 1}.\2"),
            ]
        rules += [
            (rf"{block}\.shortcut\.convolution\.(.*)", rf"{new}.downsample.0.\2"),
            (rf"{block}\.shortcut\.normalization\.(.*)", rf"{new}.downsample.1.\2"),
        ]
    return keys.rename(*rules)


def _convnext(keys: Keys) -> dict[str, Tensor]:
    at = r"(?:convnext|convnextv2)?\.?"
    stage = rf"{at}encoder\.stages\.(\d+)"
    block, new = rf"{stage}\.layers\.(\d+)", r"stages.\1.blocks.\2"
    tensors = keys.rename(
        (rf"{at}embeddings\.patch_embeddings\.(.*)", r"stem.0.\1"),
        (rf"{at}embeddings\.layernorm\.(.*)", r"stem.1.\1"),
        (rf"{stage}\.downsampling_layer\.([01])\.(.*)", r"stages.\1.downsample.\2.\3"),
        (rf"{block}\.layer_scale_parameter", rf"{new}.gamma"),
        (rf"{block}\.dwconv\.(.*)", rf"{new}.conv_dw.\3"),
        (rf"{block}\.layernorm\.(.*)", rf"{new}.norm.\3"),
        (rf"{block}\.pwconv1\.(.*)", rf"{new}.mlp.fc1.\3"),
        (rf"{block}\.pwconv2\.(.*)", rf"{new}.mlp.fc2.\3"),
        (rf"{block}\.grn\.(.*)", rf"{new}.mlp.grn.\3"),
        (rf"{at}layernorm\.(.*)", r"head.norm.\1"),
        (r"classifier\.(.*)", r"head.fc.\1"),
    )
    return {n: t.flatten() if ".grn." in n else t for n, t in tensors.items()}


RENAMED: dict[str, Callable[[Keys], dict[str, Tensor]]] = {
    "vit": _vit,
    "swin": _swin,
    "resnet": _resnet,
    "convnext": _convnext,
}
"""Family to the function that renames a file's tensors, using every key it knows."""
