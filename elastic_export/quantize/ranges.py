"""Our own hooks of the calibration pass: min and max of every layer's input and output.

Asymmetric INT8 needs them and ModelOpt does not keep them. Memory per layer does not depend on
how much data passes. A value that is not a finite number stops the pass at the first layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from elastic_export.errors import UserError
from elastic_export.quantize.histogram import Histogram

__all__ = ["Range", "RangeHooks", "finite_range"]


class Range:
    """Smallest and largest value seen, and a histogram where a method needs one."""

    def __init__(self, *, histogram: bool) -> None:
        self.min = math.inf
        self.max = -math.inf
        self.histogram = Histogram() if histogram else None

    @property
    def seen(self) -> bool:
        """Whether any value was collected."""
        return self.min <= self.max

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value, or zeros where none was collected."""
        return (self.min, self.max) if self.seen else (0.0, 0.0)

    def collect(self, x: Tensor, where: str) -> None:
        """Add a tensor; ``where`` names it in the error for a value that is not finite."""
        low, high = finite_range(x, where)
        self.min, self.max = min(self.min, low), max(self.max, high)
        if self.histogram is not None:
            self.histogram.collect(x)

    def amax(self, range_of: Callable[[Histogram], float] | None) -> float:
        """Return the symmetric limit: from the histogram, else the largest absolute value."""
        if self.histogram is None or range_of is None:
            return max(abs(self.min), abs(self.max)) if self.seen else 0.0
        return range_of(self.histogram)


def finite_range(x: Tensor, where: str) -> tuple[float, float]:
    """Return ``(min, max)`` of a tensor, as floats.

    Raises:
        UserError: the tensor holds NaN or Inf; ``where`` names it.
    """
    bounds = torch.aminmax(x.detach())
    low, high = float(bounds.min), float(bounds.max)
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    kind = "NaN" if math.isnan(low) else "infinite values"
    raise UserError(
        f"Calibration met {kind} in {where}.",
        "Check the weights and the training that produced them; nothing was written.",
    )


class RangeHooks:
    """Attach to the layers of a module; use as a context manager, which detaches them."""

    def __init__(self, layers: Mapping[str, nn.Module], *, histogram: bool) -> None:
        self.inputs = {name: Range(histogram=False) for name in layers}
        self.outputs = {name: Range(histogram=histogram) for name in layers}
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

    def _before(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def collect(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.inputs[name].collect(args[0], f'the input of layer "{name}"')

        return collect

    def _after(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def collect(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
            self.outputs[name].collect(out, f'the output of layer "{name}"')

        return collect
