"""Count the MACs of a plain module by running it on the meta device.

Well-defined only with its convention: one multiply-add is one MAC; convolutions, linear layers and
the two attention products count, norms, activations and softmax do not. torch's own counter does
the counting (it reports two operations for each multiply-add), so this is independent of the
families' closed forms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from elastic_export.space.cost import density, hardware_density

__all__ = ["Macs", "count_macs"]


_ATEN = torch.ops.aten
_LIKE_THE_FIRST: frozenset[Callable[..., Any]] = frozenset(
    {
        _ATEN.gelu.default,
        _ATEN.hardsigmoid.default,
        _ATEN.hardswish.default,
        _ATEN.hardtanh.default,
        _ATEN.relu.default,
        _ATEN.sigmoid.default,
        _ATEN.silu.default,
    }
)

_OF_TWO: frozenset[Callable[..., Any]] = frozenset({_ATEN.add.Tensor, _ATEN.mul.Tensor})


def _alike(a: Tensor, b: object) -> bool:
    return isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype


class _Shapes(TorchDispatchMode):
    """Answer frequent operators with a tensor of the right shape.

    torch computes their shapes in Python on ``meta``, which takes most of a count's time: without
    this class a ResNet takes three times as long. The counter has counted before it asks here.
    Whatever is in place or has another layout goes torch's own way.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not kwargs and args and isinstance(args[0], Tensor) and args[0].is_contiguous():
            if func in _LIKE_THE_FIRST:
                return torch.empty_like(args[0])
            if func in _OF_TWO and _alike(args[0], args[1]):
                return torch.empty_like(args[0])
            if func is _ATEN._native_batch_norm_legit_no_training.default:
                none = args[0].new_empty(0)
                return torch.empty_like(args[0]), none, none
            if func is _ATEN.native_layer_norm.default:
                lead = args[0].shape[: args[0].dim() - len(args[1])] + (1,) * len(args[1])
                moment = args[0].new_empty(lead)
                return torch.empty_like(args[0]), moment, moment
            if func is _ATEN.addmm.default:
                return args[1].new_empty(args[1].shape[0], args[2].shape[1])
        return func(*args, **(kwargs or {}))


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
    with torch.no_grad(), _Shapes(), counter:
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
