"""The torch network with the roundings of a flavour: what a file must compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn

from elastic_export.export.saturation import pair_safe_int8
from elastic_export.quantize.fake import fake_quantize, rounding
from elastic_export.quantize.policy import quantizable_layers
from elastic_export.quantize.record import AttentionPrecision, QuantizationRecord, Role
from elastic_export.quantize.tracking import Fused, Operand, Product, Tracker

__all__ = ["rounded_like"]


def rounded_like(
    module: nn.Module,
    record: QuantizationRecord,
    flavour: str,
    *,
    attention: AttentionPrecision = "float",
) -> nn.Module:
    """Return a copy of a network that rounds what a flavour's file rounds.

    Args:
        module: The plain module the record was taken from; not changed.
        record: As calibrated; it is placed here as ``emit`` places it.
        flavour: Name of an INT8 flavour.
        attention: As given to ``emit``.

    Raises:
        UserError: the flavour is unknown.
        CheckFailed: the record names a layer the module does not have.
    """
    placed = record.placed(flavour, attention=attention)
    if flavour == "ort-cpu":
        convolutions = [n for n, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
        return fake_quantize(
            module, placed, asymmetric=True, outputs=convolutions, weight_form=pair_safe_int8
        )
    dtype = np.float16 if flavour == "trt-strong" else np.float32
    twin = fake_quantize(module, placed, scale_dtype=dtype)
    skips = _rounded_skips(twin, placed)
    attentions = placed.int8_attentions()
    if not skips and not attentions:
        return twin
    return _watched(twin, lambda network: _Rounding(network, placed, skips, attentions, dtype))


def _rounded_skips(module: nn.Module, record: QuantizationRecord) -> list[str]:
    """Return the INT8 convolutions whose skip connection is INT8 (see ``export.symmetric``)."""
    layers = quantizable_layers(module)
    found = []
    for name in record.quantized_modules():
        skip = record.sites.get((name, "skip"))
        if isinstance(layers[name], nn.Conv2d) and skip is not None and skip.policy == "int8":
            found.append(name)
    return found


def _watched(module: nn.Module, watch: Callable[[nn.Module], Tracker]) -> nn.Module:
    """Let every call of a module run inside a tracker; names of its parts stay as they are."""
    kind: Any = type(module)

    class Rounded(kind):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with watch(self):
                return super().__call__(*args, **kwargs)

    module.__class__ = Rounded
    return module


class _Rounding(Tracker):
    """Rounds skip connections and the operands of attention products while a network runs."""

    def __init__(
        self,
        module: nn.Module,
        record: QuantizationRecord,
        skips: list[str],
        attentions: list[str],
        dtype: DTypeLike,
    ) -> None:
        super().__init__(module, quantizable_layers(module))
        self._record = record
        self._skips = skips
        self._attentions = attentions
        self._dtype = dtype

    def on_addition(self, layer: str, other: Tensor, main: bool) -> Tensor:
        return self._round(layer, "skip", other) if main and layer in self._skips else other

    def on_first(self, product: Product) -> tuple[Tensor, Tensor]:
        query, key = product.query, product.key
        if product.module not in self._attentions:
            return query.tensor, key.tensor
        return self._operand(product.module, "bmm_a", query), self._operand(
            product.module, "bmm_b", key
        )

    def on_second(self, product: Product, probs: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if product.module not in self._attentions:
            return probs, value
        return self._round(product.module, "probs", probs), self._round(
            product.module, "value", value
        )

    def on_fused(self, fused: Fused, run: Callable[[], Tensor]) -> Tensor:
        query, key = fused.product.query, fused.product.key
        if fused.product.module not in self._attentions:
            return run()
        # The exporter applies the scale to the query, so it is the scaled query that is rounded.
        scaled = Operand(query.tensor * fused.scale, query.factor * fused.scale)
        left, right = self.on_first(replace(fused.product, query=scaled, key=key))
        scores = left @ right.transpose(-2, -1)
        if fused.mask is not None and fused.mask.dtype == torch.bool:
            scores = scores.masked_fill(~fused.mask, float("-inf"))
        elif fused.mask is not None:
            scores = scores + fused.mask
        left, right = self.on_second(fused.product, scores.softmax(dim=-1), fused.value)
        return left @ right

    def _operand(self, module: str, role: Role, operand: Operand) -> Tensor:
        return self._round(module, role, operand.tensor, abs(operand.factor))

    def _round(self, module: str, role: Role, x: Tensor, factor: float = 1.0) -> Tensor:
        site = self._record.site(module, role)
        amax = np.asarray(site.amax * np.float32(factor), np.float32)
        return rounding(replace(site, amax=amax), dtype=self._dtype)(x)
