"""Find the layer in which a file begins to compute something else than torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from elastic_export.export.layer_errors import LayerError, layer_errors
from elastic_export.export.table import ExportTable

__all__ = ["BadLayer", "first_bad_layer"]

LISTED = 5
"""How many layers the table shows before the bad one."""


@dataclass(frozen=True)
class BadLayer:
    """The first layer that computes something else than torch.

    Args:
        layer: Its name, kind and errors.
        cause: ``layer``: its own weight, scale, zero point or bias is wrong. ``input``: it is
            right itself, and what lies between it and the layers in front of it is not.
        share: The error that was allowed.
        before: The layers in front of it, in the order in which they run.
    """

    layer: LayerError
    cause: Literal["layer", "input"]
    share: float
    before: tuple[LayerError, ...]

    @property
    def name(self) -> str:
        """Name of the layer's node."""
        return self.layer.name

    def sentence(self) -> str:
        """Say which layer it is and by how much it differs."""
        layer, largest = self.layer, max((each.error for each in self.before), default=0.0)
        what = f'"{layer.name}" ({layer.kind})'
        if self.cause == "layer":
            return (
                f"The first bad layer is {what}: {layer.own:.1e} of its largest value on its own, "
                f"where {self.share:.1e} is allowed and {largest:.1e} is the most before it."
            )
        return (
            f"The first bad layer is {what}, which is right itself but reads something wrong: "
            f"{layer.error:.1e} of its largest value, where {largest:.1e} is the most before it."
        )

    def table(self) -> str:
        """Return the last layers before it and itself, one line each."""
        shown = [*self.before[-LISTED:], self.layer]
        width = max(len(each.name) for each in shown)
        lines = [
            f"{each.name:{width}}  {each.own:8.1e}  {each.error:8.1e}  {each.kind}"
            for each in shown
        ]
        return "\n".join([f"{'layer':{width}}  {'own':>8}  {'error':>8}  kind", *lines])


def first_bad_layer(
    path: Path,
    module: nn.Module,
    table: ExportTable,
    x: NDArray[np.float32],
    tolerance: float,
) -> BadLayer | None:
    """Find the first layer of a file that differs from torch by more than its share.

    A layer may have ``tolerance / sqrt(layers)`` of error of its own: errors of rounding add up
    over layers like steps of a random walk. One that keeps to that but whose whole error exceeds
    ``tolerance`` reads something wrong.

    Args:
        path: A file of any flavour.
        module: What it must compute: the exported module for FP32 and FP16,
            ``reference.rounded_like`` of it for INT8. It is put into eval mode.
        table: The export table of the FP32 file it came from.
        x: float32 images ``(B, C, H, W)``; a fixed batch size is served that many at a time.
        tolerance: What is allowed at the logits, relative to the largest.

    Returns:
        The layer, or None where all are right.

    Raises:
        CheckFailed: The file cannot be run or misses a layer.
        UserError: The file cannot be read.
    """
    errors = layer_errors(path, module, table, x)
    share = tolerance / max(len(errors), 1) ** 0.5
    for number, layer in enumerate(errors):
        before = tuple(errors[:number])
        if not layer.own <= share:
            return BadLayer(layer, "layer", share, before)
        if not layer.error <= tolerance:
            return BadLayer(layer, "input", tolerance, before)
    return None
