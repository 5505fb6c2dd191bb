"""How a calibration recipe reads ranges from what a pass over the images collected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.quantize.histogram import Histogram
from elastic_export.quantize.ranges import Range
from elastic_export.quantize.squared_error import affine_bounds, symmetric_limit, weight_limits

__all__ = ["Method", "method_of"]


@dataclass(frozen=True)
class Method:
    """A way to read ranges.

    Args:
        name: What the record calls it.
        limit: Reads the symmetric limit from a histogram; None takes the largest absolute value,
            and then no histogram is kept.
        least_error: Histograms keep sums, and the asymmetric bounds and the limits of weights are
            those with the least squared error, too.
    """

    name: str
    limit: Callable[[Histogram], float] | None = None
    least_error: bool = False

    @property
    def histogram(self) -> bool:
        """Whether histograms are kept."""
        return self.limit is not None

    def amax(self, range_: Range) -> float:
        """Return the symmetric limit of a range."""
        if self.limit is None or range_.histogram is None:
            return range_.largest
        return self.limit(range_.histogram)

    def bounds(self, range_: Range, amax: float) -> tuple[float, float]:
        """Return the asymmetric bounds: by least error, else clipped to the symmetric limit."""
        low, high = range_.bounds
        if self.least_error and range_.histogram is not None:
            return affine_bounds(range_.histogram, low, high)
        return max(low, -amax), min(high, amax)

    def weight_amax(self, weight: Tensor) -> NDArray[np.float32]:
        """Return the symmetric limit of each output channel of a weight, float32 (out,)."""
        if self.least_error:
            return weight_limits(weight)
        limits = weight.detach().abs().flatten(1).amax(dim=1).float().cpu().numpy()
        return np.asarray(limits)


def method_of(recipe: CalibrationRecipe) -> Method:
    """Return the method that a recipe asks for."""
    if recipe.method == "percentile":
        percent = recipe.percentile
        assert percent is not None
        return Method(f"percentile-{percent:g}", lambda histogram: histogram.percentile(percent))
    if recipe.method == "entropy":
        return Method("entropy", Histogram.entropy)
    if recipe.method == "mse":
        return Method("mse", symmetric_limit, least_error=True)
    return Method("max")
