"""Count the MACs of a plain module by running it on the meta device.

Well-defined only with its convention: one multiply-add is one MAC; convolutions, linear layers and
the two attention products count, norms, activations and softmax do not. torch's own counter does
the counting (it reports two operations for each multiply-add), so this is independent of the
families' closed forms.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from elastic_export.space.cost import density, hardware_density

__all__ = ["Macs", "count_macs"]


@dataclass(frozen=True)
class Macs:
    """MACs of one image: the total, and the part of each Linear and Conv2d by module name.

    timm's ``test_vit`` at 160 x 160 has 37.6 M in all.
    """

    total: int
    layers: Mapping[str, int]

    def weighted(self, patterns: Mapping[str, str], *, hardware: bool) -> int:
        """The total with sparse layers counted by their density.

        Args:
            patterns: Parameter name (``...weight``) to N:M pattern.
            hardware: Count what 2:4 tensor cores execute instead of N/M.
        """
        share = hardware_density if hardware else density
        saved = sum(
            self.layers[name.removesuffix(".weight")] * (1.0 - share(pattern))
            for name, pattern in patterns.items()
        )
        return round(self.total - saved)


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> Macs:
    """Count on a meta copy; costs milliseconds and no memory.

    Args:
        module: A plain module on any device.
        input_shape: Channels, height and width of one image.
    """
    shadow = _shadow(module) if _has_memory(module) else module
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        shadow.eval()(torch.empty(1, *input_shape, device="meta"))
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    root = type(shadow).__name__
    layers = {
        name: counts.get(f"{root}.{name}", 0)
        for name, layer in shadow.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    return Macs(total=counts.get("Global", 0), layers=layers)


def _shadow(module: nn.Module) -> nn.Module:
    """Copy a module onto meta without a copy of its values on the way."""
    parameters = {id(p): nn.Parameter(p.detach().to("meta")) for p in module.parameters()}
    buffers = {id(b): b.detach().to("meta") for b in module.buffers()}
    return copy.deepcopy(module, {**parameters, **buffers})


def _has_memory(module: nn.Module) -> bool:
    return any(t.device.type != "meta" for t in (*module.parameters(), *module.buffers()))
