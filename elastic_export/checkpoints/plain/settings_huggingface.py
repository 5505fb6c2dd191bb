"""What ``config.json`` of Hugging Face transformers tells, checked against the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_export.checkpoints.plain.names import Named
from elastic_export.checkpoints.reader import Source
from elastic_export.errors import UserError

__all__ = ["MODELS", "settings_of_config"]

MODELS = {
    "vit": "vit",
    "deit": "vit",
    "swin": "swin",
    "resnet": "resnet",
    "convnext": "convnext",
    "convnextv2": "convnext",
}
"""Model type to family."""
_EPS = {"vit": 1e-12, "swin": 1e-5, "convnext": 1e-12}
_ACTIVATION = {"vit": "gelu", "swin": "gelu", "resnet": "relu", "convnext": "gelu"}
# Names of the exact GELU.
_SAME = {"gelu_python": "gelu"}
# What the families do not build, with the value they stand for.
_FIXED: dict[str, dict[str, Any]] = {
    "resnet": {"downsample_in_first_stage": False, "downsample_in_bottleneck": False},
}


def settings_of_config(source: Source, config: Mapping[str, Any], named: Named) -> None:
    """Put what ``config.json`` tells into ``named``; what its origin implies where it is missing.

    Raises:
        UserError: The network has an activation or an option that its family does not build, or
            ``config.json`` belongs to another network.
    """
    family = named.family
    if config and MODELS[config["model_type"]] != family:
        raise UserError(
            f"config.json beside {source.path} is that of a {config['model_type']}, but the "
            f"tensors are those of a {family}.",
            "Put the file beside its own config.json, or away from this one.",
        )
    _refuse(source, config, family)
    into = named.known if config else named.assumed
    eps = config.get("layer_norm_eps", _EPS.get(family))
    if family == "convnext":
        into["head_norm_eps"] = eps
        named.assumed["norm_eps"] = 1e-6
    elif family != "resnet":
        into["norm_eps"] = eps
    if family == "swin" and eps != _EPS["swin"]:
        raise UserError(
            f"{source.path} has layer_norm_eps {eps} in its blocks and 1e-05 elsewhere, which "
            "family swin does not build.",
            "Use a checkpoint with layer_norm_eps 1e-05.",
        )
    if family == "vit" and "num_attention_heads" in config:
        named.known["heads"] = (config["num_attention_heads"],)
    size = config.get("image_size")
    if size is not None and family != "resnet":
        sides = set(size) if isinstance(size, list) else {size}
        if len(sides) != 1:
            raise UserError(
                f"{source.path} reads images of {size} pixels.", "Only square inputs are read."
            )
        named.known["image_size"] = sides.pop()
    if not config and family != "resnet":
        named.notes.append(
            f"There is no config.json beside the file: GELU and eps {eps} are assumed, which "
            "transformers has by default."
        )
    elif not config:
        named.notes.append(
            "There is no config.json beside the file: stride in the 3x3 convolutions is assumed, "
            "which transformers has by default."
        )
    _check_sizes(source, config, named)


def _refuse(source: Source, config: Mapping[str, Any], family: str) -> None:
    act = str(config.get("hidden_act", _ACTIVATION[family]))
    if _SAME.get(act, act) != _ACTIVATION[family]:
        raise UserError(
            f"{source.path} has the activation {act}, but family {family} computes "
            f"{_ACTIVATION[family]} alone.",
            f"Only networks trained with {_ACTIVATION[family]} can be imported.",
        )
    for key, wanted in _FIXED.get(family, {}).items():
        if config.get(key, wanted) != wanted:
            raise UserError(
                f"{source.path} has {key} {config[key]}, which family {family} does not build.",
                f"Use a checkpoint with {key} {wanted}.",
            )


def _check_sizes(source: Source, config: Mapping[str, Any], named: Named) -> None:
    """A ``config.json`` of another network is told by its sizes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named.tensors.items()}
    first = {
        "vit": ("patch_embed.proj.weight", "hidden_size", 0),
        "swin": ("patch_embed.proj.weight", "embed_dim", 0),
        "resnet": ("conv1.weight", "embedding_size", 0),
        "convnext": ("stem.0.weight", "patch_size", -1),
    }[named.family]
    name, key, dim = first
    if key in config and name in shapes and shapes[name][dim] != config[key]:
        raise UserError(
            f"config.json says {key} {config[key]}, but the tensors in {source.path} have "
            f"{shapes[name][dim]}.",
            "Put the file beside its own config.json, or away from this one.",
        )
