"""Which layers are quantized: hard reasons, and the rules of ``placement.yaml`` on a module.

A hard reason (the recipe skips the layer, or it computes more than its class says) holds for every
runtime. A rule holds only in the flavours whose section has it in force, so a verdict names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from elastic_export.quantize.placement import ATTENTION, Rule, placement_rules

__all__ = ["Layer", "Verdict", "attention_verdict", "is_plain", "judge", "quantizable_layers"]

Layer = nn.Linear | nn.Conv2d


class Verdict(NamedTuple):
    """Why a site stays in floating point; both are empty where it becomes INT8.

    ``rule`` names every rule that holds it back, joined by commas; it is empty where the reason is
    a hard one. ``reason`` is one sentence.
    """

    reason: str
    rule: str = ""


def quantizable_layers(module: nn.Module) -> dict[str, Layer]:
    """Return every ``Linear`` and ``Conv2d`` by name, in the order of registration."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Layer)}


def judge(
    name: str, layer: Layer, skip: Sequence[str] = (), positions: int | None = None
) -> Verdict:
    """Say why a layer stays in floating point, in some flavours or in all.

    Args:
        name: Dotted name of the layer.
        layer: The layer.
        skip: Shell patterns of the calibration recipe, matched against the whole name of the
            layer and of every module it lies in.
        positions: On how many positions of an image it runs (``ProductHooks.positions``); None
            where that is unknown.
    """
    if asked := _skipped(name, skip):
        return Verdict(asked)
    if not is_plain(layer):
        return Verdict(f"Its class {type(layer).__name__} computes more than a Linear or Conv2d.")
    found = {
        rule_name: sentence
        for rule_name, rule in placement_rules().rules.items()
        if (sentence := _apply(rule, name, layer, positions))
    }
    return Verdict(next(iter(found.values()), ""), ",".join(found))


def _skipped(name: str, skip: Sequence[str]) -> str:
    """Say which pattern of the recipe keeps a module in floating point, or nothing."""
    parts = name.split(".")
    names = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    for pattern in skip:
        if any(fnmatchcase(each, pattern) for each in names):
            return f'The calibration recipe skips it (pattern "{pattern}").'
    return ""


def attention_verdict(name: str = "", skip: Sequence[str] = ()) -> Verdict:
    """Return the verdict on the operands of an attention's products (see :func:`judge`)."""
    if asked := _skipped(name, skip):
        return Verdict(asked)
    return Verdict(placement_rules().rules[ATTENTION].reason, ATTENTION)


def is_plain(layer: Layer) -> bool:
    """Tell whether the layer computes exactly what its base class does from its weight.

    A weight-standardised convolution, for example, uses another weight than the one it stores.
    """
    if isinstance(layer, nn.Linear):
        return type(layer).forward is nn.Linear.forward
    kind = type(layer)
    same = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    return same and layer.padding_mode == "zeros"


def _apply(rule: Rule, name: str, layer: Layer, positions: int | None) -> str:
    """Return the sentence of a rule that holds the layer back, or nothing."""
    inputs, outputs, groups = _widths(layer)
    most, below = rule.most or 0, rule.below or 0
    unit = "features" if isinstance(layer, nn.Linear) else "channels"
    count = inputs
    if rule.kind == "names":
        holds = any(fnmatchcase(name, pattern) for pattern in rule.layers)
    elif rule.kind == "positions":
        holds = positions is not None and positions <= most
    elif rule.kind == "image":
        holds = _reads_image(layer, most)
    elif rule.kind == "group":
        holds = groups > 1 and inputs < below
    elif rule.kind == "width":
        image = any(
            _reads_image(layer, other.most or 0)
            for other in placement_rules().rules.values()
            if other.kind == "image"
        )
        narrow_input = inputs < below and not image
        holds = groups == 1 and (narrow_input or outputs < below)
        count, unit = (inputs, f"input {unit}") if narrow_input else (outputs, f"output {unit}")
    else:
        holds = False
    return rule.reason.format(count=count, unit=unit, below=below) if holds else ""


def _reads_image(layer: Layer, most: int) -> bool:
    inputs, _, groups = _widths(layer)
    return isinstance(layer, nn.Conv2d) and groups == 1 and inputs <= most


def _widths(layer: Layer) -> tuple[int, int, int]:
    """Return input channels of one group, output channels, and groups."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, 1
    return layer.in_channels // layer.groups, layer.out_channels, layer.groups
