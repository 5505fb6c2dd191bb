"""Ranges of skip connections and attention products, in the pass that calibrates the layers.

``skip`` of a layer is what a residual addition adds to the layer's output. An attention has four
operands (``bmm_a`` query, ``bmm_b`` key, ``probs``, ``value``) under the name of the module whose
forward multiplies them. Query and key are measured before the scale of the attention, wherever the
network applies it. Softmax gives numbers from 0 to 1, so ``probs`` has that range and no other: a
grid that ends at the largest probability of the calibration images would clip others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from elastic_export.quantize.ranges import Range
from elastic_export.quantize.record import Role
from elastic_export.quantize.tracking import Fused, Operand, Product, Tracker

__all__ = ["ProductHooks"]


class ProductHooks(Tracker):
    """Collects the ranges while a network runs; use as a context manager.

    Args:
        module: The network, run in eval mode, BatchNorm folded.
        layers: Its quantizable layers by name.
        histogram: Keep a histogram of every range, for methods that need one.
        sums: Keep sums in it, too (see ``histogram``).

    Attributes:
        ranges: ``(module, role)`` to range: ``skip`` for layers whose output is added to another
            tensor, the four operands for modules that hold an attention.
        positions: Layer name to the most positions (tokens, pixels) of an image it ran on; where
            that is 1, the layer is a matrix-vector product at batch 1.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Mapping[str, nn.Module],
        *,
        histogram: bool,
        sums: bool = False,
    ) -> None:
        super().__init__(module, layers)
        self.ranges: dict[tuple[str, Role], Range] = {}
        self.positions: dict[str, int] = {}
        self._histogram = histogram
        self._sums = sums

    def on_layer(self, name: str, positions: int) -> None:
        """Keep the largest number of positions."""
        self.positions[name] = max(positions, self.positions.get(name, 0))

    def on_addition(self, layer: str, other: Tensor, main: bool) -> Tensor:
        """Measure the skip connection of a layer."""
        self._collect(layer, "skip", other, f'the skip connection of layer "{layer}"')
        return other

    def on_second(self, product: Product, probs: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Measure an attention once both of its products are known."""
        self._collect_attention(product, value)
        return probs, value

    def on_fused(self, fused: Fused, run: Callable[[], Tensor]) -> Tensor:
        """Measure the operands of an attention that is one call."""
        self._collect_attention(fused.product, fused.value)
        return run()

    def _collect_attention(self, product: Product, value: Tensor) -> None:
        where = f'of attention "{product.module}"'
        self._collect(product.module, "bmm_a", _unscaled(product.query), f"the query {where}")
        self._collect(product.module, "bmm_b", _unscaled(product.key), f"the key {where}")
        self._collect(product.module, "value", value, f"the value {where}")
        self.ranges[product.module, "probs"] = probs = self._new("probs")
        probs.min, probs.max = 0.0, 1.0

    def _new(self, role: Role) -> Range:
        # Nothing is measured of probabilities, so they have no histogram.
        return Range(histogram=self._histogram and role != "probs", sums=self._sums)

    def _collect(self, module: str, role: Role, x: Tensor, where: str) -> None:
        if (module, role) not in self.ranges:
            self.ranges[module, role] = self._new(role)
        self.ranges[module, role].collect(x.detach(), where)


def _unscaled(operand: Operand) -> Tensor:
    """Return the operand without what it was multiplied by; a factor of 0 is left alone."""
    return operand.tensor if operand.factor in (0.0, 1.0) else operand.tensor / operand.factor
