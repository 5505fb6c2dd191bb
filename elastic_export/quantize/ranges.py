"""Our own hooks of the calibration pass: min and max of every layer's input and output.

Asymmetric INT8 needs them and ModelOpt does not keep them. Memory per layer does not depend on
how much data passes. A value that is not a finite number stops the pass at the first layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from elastic_export.errors import UserError
from elastic_export.quantize.histogram import Histogram

__all__ = ["NotFiniteError", "Range", "RangeHooks", "finite_range"]


class NotFiniteError(UserError):
    """A tensor holds NaN or infinite values; ``what`` names it."""


class Range:
    """Smallest and largest value seen, and a histogram where a method needs one."""

    def __init__(self, *, histogram: bool, sums: bool = False) -> None:
        self.min = math.inf
        self.max = -math.inf
        self.histogram = Histogram(sums=sums) if histogram else None

    @property
    def seen(self) -> bool:
        """Whether any value was collected."""
        return self.min <= self.max

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value, or zeros where none was collected."""
        return (self.min, self.max) if self.seen else (0.0, 0.0)

    @property
    def largest(self) -> float:
        """Largest absolute value, or zero where none was collected."""
        return max(abs(bound) for bound in self.bounds)

    def collect(self, x: Tensor, where: str) -> None:
        """Add a tensor; ``where`` names it in the error for a value that is not finite."""
        low, high = finite_range(x, where)
        self.min, self.max = min(self.min, low), max(self.max, high)
        if self.histogram is not None:
            self.histogram.collect(x)

    def state(self) -> dict[str, Any]:
        """Return everything collected, as numbers and tensors."""
        histogram = None if self.histogram is None else self.histogram.state()
        return {"min": self.min, "max": self.max, "histogram": histogram}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.min, self.max = state["min"], state["max"]
        if self.histogram is not None:
            self.histogram.load(state["histogram"])


def finite_range(x: Tensor, where: str) -> tuple[float, float]:
    """Return ``(min, max)`` of a tensor, as floats.

    Raises:
        NotFiniteError: the tensor holds NaN or Inf; ``where`` names it.
    """
    bounds = torch.aminmax(x.detach())
    low, high = float(bounds.min), float(bounds.max)
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    kind = "NaN" if math.isnan(low) else "infinite values"
    raise NotFiniteError(
        f"Calibration met {kind} in {where}.",
        "Check the weights and the training that produced them; nothing was written.",
    )


class RangeHooks:
    """Attach to the layers of a module; use as a context manager, which detaches them."""

    def __init__(
        self, layers: Mapping[str, nn.Module], *, histogram: bool, sums: bool = False
    ) -> None:
        self.inputs = {name: Range(histogram=False) for name in layers}
        self.outputs = {name: Range(histogram=histogram, sums=sums) for name in layers}
        self._layers = layers
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> RangeHooks:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._before(name)))
            self._handles.append(layer.register_forward_hook(self._after(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def state(self) -> dict[str, Any]:
        """Return everything collected, as numbers and tensors."""
        return {
            "inputs": {name: each.state() for name, each in self.inputs.items()},
            "outputs": {name: each.state() for name, each in self.outputs.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        for name in self._layers:
            self.inputs[name].load(state["inputs"][name])
            self.outputs[name].load(state["outputs"][name])

    def _before(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def collect(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.inputs[name].collect(args[0], f'the input of layer "{name}"')

        return collect

    def _after(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def collect(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
            self.outputs[name].collect(out, f'the output of layer "{name}"')

        return collect
