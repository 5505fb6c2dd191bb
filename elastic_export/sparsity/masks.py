"""Masks for a whole module: which layers get a pattern, and the check that they have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from elastic_export.errors import CheckFailed, UserError, did_you_mean
from elastic_export.space.cost import reduction_block
from elastic_export.sparsity.patterns import pattern_holds, pattern_mask

__all__ = ["check_patterns", "check_skip", "eligible_layers", "make_masks"]


def eligible_layers(module: nn.Module, skip: Iterable[str] = ()) -> dict[str, nn.Module]:
    """Linear layers and ungrouped convolutions by name, without those a skip pattern matches.

    A skip pattern matches a module's full name (``head``, ``layer1.*``) or the name of a parent.
    """
    skip = tuple(skip)

    def skipped(name: str) -> bool:
        parts = name.split(".")
        names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return any(fnmatchcase(n, pattern) for n in names for pattern in skip)

    return {
        name: layer
        for name, layer in module.named_modules()
        if (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1))
        and not skipped(name)
    }


def check_skip(module: nn.Module, skip: Iterable[str], key: str = "sparsify.skip") -> None:
    """Refuse a skip pattern that matches nothing: most likely it is misspelt.

    Args:
        module: The network.
        skip: Shell patterns of module names.
        key: Where they were written, for the message.

    Raises:
        UserError: Naming the pattern.
    """
    names = [name for name, _ in module.named_modules() if name]
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f'{key} names "{pattern}", which matches no module of this network.',
                did_you_mean(pattern, [name for name in names if "." not in name]),
            )


def make_masks(
    module: nn.Module, pattern: str, skip: Iterable[str] = ()
) -> dict[str, torch.Tensor]:
    """Magnitude masks of one pattern for every eligible layer.

    Layers that read less than one group, such as the one that reads the image's three channels,
    stay dense.

    Returns:
        Parameter name to a bool tensor of its shape, true where kept.

    Raises:
        UserError: No layer is left, or a layer's reduction axis is not a multiple of M.
    """
    m = reduction_block(pattern)
    layers = {
        name: layer
        for name, layer in eligible_layers(module, skip).items()
        if layer.get_parameter("weight").shape[1] >= m
    }
    if not layers:
        raise UserError(
            "Every layer is skipped, so there is nothing to make sparse.",
            "Shorten sparsify.skip, or leave sparsify out of the recipe.",
        )
    for name, layer in layers.items():
        k = layer.get_parameter("weight").shape[1]
        if k % m:
            raise UserError(
                f"{name} has {k} inputs, which is no multiple of {m}, so it cannot be {pattern}.",
                f"Choose widths that are multiples of {m}, or add {name} to sparsify.skip.",
            )
    return {
        f"{name}.weight": pattern_mask(layer.get_parameter("weight"), pattern)
        for name, layer in layers.items()
    }


def check_patterns(tensors: Mapping[str, torch.Tensor], patterns: Mapping[str, str]) -> None:
    """Prove that every named weight holds its pattern along the reduction axis.

    Raises:
        CheckFailed: A weight is missing or breaks its pattern.
    """
    for name, pattern in patterns.items():
        if name not in tensors:
            raise CheckFailed(
                f"{name} should be {pattern}, but the network has no such weight.",
                "This is a fault of the stage that ran last; please report it.",
            )
        if not pattern_holds(tensors[name], pattern):
            raise CheckFailed(
                f"{name} should be {pattern}, but a group holds too many values.",
                "Run the sparsify stage again; if it stays, please report it.",
            )
