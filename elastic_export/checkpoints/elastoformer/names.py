"""Elastoformer's state dicts as plain networks: HF's ViT, torchvision's ResNet and VGG."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from elastic_export.checkpoints.reader import Keys
from elastic_export.errors import UserError
from elastic_export.families.nested.network import Network, group_sizes
from elastic_export.families.nested.resnet import ResNetNetwork
from elastic_export.families.nested.vgg import VggForm, VggNetwork
from elastic_export.families.nested.vit import VitNetwork

__all__ = ["Plain", "knows", "plain_name", "read_plain", "rebuilt_plan"]

_LAYER = r"vit\.encoder\.layer\.(\d+)\."
_RENAMED = (
    (r"vit\.embeddings\.cls_token", "cls_token"),
    (r"vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"vit\.embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (_LAYER + r"attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"intermediate\.dense\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"output\.dense\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (_LAYER + r"layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
    (_LAYER + r"layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"vit\.layernorm\.(\w+)", r"norm.\1"),
    (r"classifier\.(\w+)", r"head.\1"),
)
_PACKED = (_LAYER + r"attention\.attention\.(?:query|key|value)\.(\w+)", r"blocks.\1.attn.qkv.\2")
_MARKS = {
    "vit": "vit.embeddings.patch_embeddings.projection.weight",
    "resnet": "layer1.0.conv1.weight",
    "vgg": "features.0.weight",
}
_POOLED = frozenset((4, 11, 21, 31, 41))
"""After which of the original layers the system's VGG has a pooling when it rebuilds a level."""


@dataclass
class Plain:
    """A level's network with plain names.

    Attributes:
        network: Its base, as if it were the only level.
        tensors: Plain name to tensor.
        sizes: Coupling group to width.
        facts: What the shapes tell: classes, channels, and for a ViT the image size.
        ignored: Key to the reason why it is not needed.
    """

    network: Network
    tensors: dict[str, Tensor]
    sizes: dict[str, int]
    facts: dict[str, int]
    ignored: dict[str, str]


def knows(names: Mapping[str, Any] | Any) -> str | None:
    """Which of the three architectures a file's keys show, if any."""
    found = set(names)
    return next((arch for arch, mark in _MARKS.items() if mark in found), None)


def plain_name(arch: str, name: str) -> str:
    """The plain name of a tensor in the file; the same for CNNs, which have torchvision's."""
    if arch == "vit":
        for pattern, new in (*_RENAMED, _PACKED):
            if re.fullmatch(pattern, name):
                return re.sub(pattern, new, name)
    return name


def read_plain(tensors: Mapping[str, Tensor], path: Path, norm_eps: float) -> Plain:
    """Read one level.

    Args:
        tensors: The state dict.
        path: Its file, for messages.
        norm_eps: Of a ViT's LayerNorms, which the file does not hold.

    Raises:
        UserError: It is none of the three architectures, or tensors are missing or do not fit.
    """
    arch = knows(tensors)
    if arch is None:
        raise UserError(
            f"{path} is no ViT with Hugging Face's names, nor a ResNet or VGG with torchvision's.",
            "Only these are known as levels of Elastoformer; inspect tells what the file holds.",
        )
    full = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    keys = Keys(full, path)
    if arch == "vit":
        named = _vit_tensors(keys)
        build: Callable[..., Network] = _vit
    else:
        named = keys.rename((r"(.*)", r"\1"))
        build = _resnet if arch == "resnet" else _vgg
    ignored = keys.finish()
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    try:
        network = build(shapes, path, norm_eps)
    except pydantic.ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{path} is no network that can be built: {reason}.", "Check what wrote the file."
        ) from error
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{path} lacks {error.args[0]}, or it has another shape than such a network.",
            "The file is incomplete or of another system; inspect tells what it holds.",
        ) from error
    return Plain(network, named, _sizes(network, shapes, path), _facts(arch, shapes, path), ignored)


def rebuilt_plan(core: Mapping[str, Tensor]) -> str:
    """The layers of the VGG that the system rebuilds, by the names in its core.

    Every convolution gets a BatchNorm; poolings follow layers with certain numbers, whatever the
    original has there.
    """
    plan = ""
    numbers = {int(m[1]) for name in core if (m := re.fullmatch(r"features\.(\d+)\.weight", name))}
    for number in sorted(numbers):
        plan += "C" if core[f"features.{number}.weight"].dim() == 4 else ""
        plan += "M" if number in _POOLED else ""
    return plan


def _vit_tensors(keys: Keys) -> dict[str, Tensor]:
    keys.ignore(r"vit\.pooler\..*", "the classifier reads the class token, not the pooler")
    packed = {}
    for name in keys:
        match = re.fullmatch(_LAYER + r"attention\.attention\.query\.(\w+)", name)
        if match:
            stem = name.removesuffix(f"query.{match[2]}")
            parts = [keys.take(f"{stem}{part}.{match[2]}") for part in ("query", "key", "value")]
            if any(part.shape != parts[0].shape for part in parts):
                raise UserError(
                    f"Queries, keys and values of block {match[1]} differ in shape.",
                    "Only levels in which they shrink together can be read.",
                )
            packed[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(parts)
    return keys.rename(*_RENAMED) | packed


def _vit(shapes: Mapping[str, tuple[int, ...]], path: Path, norm_eps: float) -> Network:
    blocks = {int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))}
    return VitNetwork(
        patch_size=shapes["patch_embed.proj.weight"][2],
        depth=max(blocks, default=0) + 1,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        norm_eps=norm_eps,
    )


def _resnet(shapes: Mapping[str, tuple[int, ...]], path: Path, norm_eps: float) -> Network:
    if shapes["conv1.weight"][2:] != (7, 7):
        raise UserError(
            f"{path} begins with a convolution other than 7x7, as no ResNet of torchvision does.",
            "Only ResNets as torchvision builds them can be read.",
        )
    depths: dict[int, int] = {}
    for name in shapes:
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
    return ResNetNetwork(
        block="bottleneck" if "layer1.0.conv3.weight" in shapes else "basic",
        depths=tuple(depths.get(stage, 1) for stage in range(1, max(depths) + 1)),
        shortcuts=tuple(
            name.removesuffix(".downsample.0.weight")
            for name in shapes
            if name.endswith(".downsample.0.weight")
        ),
    )


def _vgg(shapes: Mapping[str, tuple[int, ...]], path: Path, norm_eps: float) -> Network:
    """Poolings hold no tensors: they are gaps in the numbers, and one is at the end."""
    norm = "features.1.running_mean" in shapes
    plan, place = "", 0
    numbers = {
        int(m[1]) for name in shapes if (m := re.fullmatch(r"features\.(\d+)\.weight", name))
    }
    convs = sorted(n for n in numbers if len(shapes[f"features.{n}.weight"]) == 4)
    for number in convs:
        plan += "M" * (number - place) + "C"
        place = number + 2 + norm
    linears = sorted(
        int(m[1]) for name in shapes if (m := re.fullmatch(r"classifier\.(\d+)\.weight", name))
    )
    last = shapes[f"features.{convs[-1]}.weight"][0]
    form = VggForm(plan=plan + "M", norm=norm, conv_bias="features.0.bias" in shapes)
    return VggNetwork(
        forms=(form,),
        fc=tuple(shapes[f"classifier.{number}.weight"][0] for number in linears[:-1]),
        pool=max(1, round((shapes["classifier.0.weight"][1] / last) ** 0.5)),
    )


def _sizes(network: Network, shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, int]:
    layout = network.layout(0)
    missing = [name for name in layout if name not in shapes]
    unknown = [name for name in shapes if name not in layout]
    if missing or unknown:
        said = f"lacks {missing[0]}" if missing else f"holds {unknown[0]}, which is not known"
        raise UserError(
            f"{path} {said}.",
            "The file is incomplete or of another network; inspect tells what it holds.",
        )
    for name, shape in shapes.items():
        if len(shape) != len(layout[name]):
            raise UserError(
                f"{name} of {path} has {len(shape)} dimensions instead of {len(layout[name])}.",
                "The file is of another network.",
            )
    sizes = {}
    for group, found in group_sizes(network, 0, shapes).items():
        if len(found) > 1:
            raise UserError(
                f"The tensors of {path} disagree about the width of {group}: "
                f"{' or '.join(map(str, sorted(found)))}.",
                "The file is damaged, or of a network with other connections.",
            )
        sizes[group] = next(iter(found))
    return sizes


def _facts(arch: str, shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, int]:
    first = {"vit": "patch_embed.proj.weight", "resnet": "conv1.weight", "vgg": "features.0.weight"}
    classes = [name for name in shapes if name.startswith(("head.", "fc.", "classifier."))]
    last = [name for name in classes if name.endswith(".weight")][-1]
    if arch == "vgg":
        last = max(classes, key=lambda name: int(name.split(".")[1])).rsplit(".", 1)[0] + ".weight"
    facts = {"in_chans": shapes[first[arch]][1], "num_classes": shapes[last][0]}
    if arch == "vit":
        patches, patch = shapes["pos_embed"][1] - 1, shapes["patch_embed.proj.weight"][2]
        side = round(max(patches, 0) ** 0.5)
        if side * side != patches:
            raise UserError(
                f"The position embedding of {path} has {patches} patches, which is no square.",
                "Only networks for square images are read.",
            )
        facts["image_size"] = side * patch
    return facts
