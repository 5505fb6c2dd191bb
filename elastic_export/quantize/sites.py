"""From what a calibration pass measured to the sites of a record: verdicts, and dead layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elastic_export.errors import UserError
from elastic_export.quantize.policy import Layer, Verdict, attention_verdict, judge
from elastic_export.quantize.record import LAYER_ROLES, PRODUCT_ROLES, Role, Site

__all__ = ["Measured", "MeasuredRange", "make_sites"]

_NOUNS: dict[Role, str] = {"bmm_a": "query", "bmm_b": "key", "probs": "softmax"}


@dataclass(frozen=True)
class MeasuredRange:
    """What was read from one range: the symmetric limit and the asymmetric bounds."""

    amax: NDArray[np.float32]
    low: float
    high: float

    @property
    def dead(self) -> bool:
        """Whether there is nothing but zeros in the range."""
        return not np.any(self.amax > 0)


@dataclass(frozen=True)
class Measured:
    """What a pass measured.

    Args:
        ranges: ``(module, role)`` to range; the three roles of every layer are there.
        called: The layers that ran.
        positions: Layer name to the most positions of an image it ran on.
    """

    ranges: Mapping[tuple[str, Role], MeasuredRange]
    called: frozenset[str]
    positions: Mapping[str, int]


def make_sites(
    layers: Mapping[str, Layer], measured: Measured, skip: Sequence[str]
) -> dict[tuple[str, str], Site]:
    """Make the sites of all layers, in their order, and then those of the attentions.

    Args:
        layers: The layers of the plain module by name.
        measured: What the pass measured.
        skip: Shell patterns of the recipe.

    Raises:
        UserError: every layer is dead.
    """
    dead = {name: _why_dead(name, measured) for name in layers}
    _check_alive(dead, measured)
    sites: dict[tuple[str, str], Site] = {}
    for name, layer in layers.items():
        verdict = judge(name, layer, skip, measured.positions.get(name))
        for role in (*LAYER_ROLES, "skip"):
            found = measured.ranges.get((name, role))
            if found is not None:
                own = _why_zero(role, found) if role == "skip" else ""
                sites[name, role] = _site(name, role, found, _harder(verdict, dead[name] or own))
    for name, role in measured.ranges:
        if role in PRODUCT_ROLES:
            reasons = (_why_zero(each, measured.ranges[name, each]) for each in PRODUCT_ROLES)
            verdict = _harder(attention_verdict(name, skip), next(filter(None, reasons), ""))
            sites[name, role] = _site(name, role, measured.ranges[name, role], verdict)
    return sites


def _harder(verdict: Verdict, dead: str) -> Verdict:
    """Let a dead range win over rules, since it holds whatever rules a flavour lifts."""
    hard = bool(verdict.reason) and not verdict.rule
    return Verdict(dead) if dead and not hard else verdict


def _why_dead(name: str, measured: Measured) -> str:
    """Say why a layer without a usable range stays in floating point, or nothing."""
    if name not in measured.called:
        return "It was not called on the calibration images."
    reasons = (_why_zero(role, measured.ranges[name, role]) for role in ("input", *LAYER_ROLES))
    return next(filter(None, reasons), "")


def _why_zero(role: Role, found: MeasuredRange) -> str:
    noun = _NOUNS.get(role, role)
    return f"Its {noun} is zero on every calibration image." if found.dead else ""


def _check_alive(dead: Mapping[str, str], measured: Measured) -> None:
    if not all(dead.values()):
        return
    first, reason = next(iter(dead.items()))
    if all(measured.ranges[name, "input"].dead for name in dead):
        raise UserError(
            f'Every layer from "{first}" on saw nothing but zeros during calibration.',
            "Check the images and the normalisation in data.transform.",
        )
    raise UserError(
        f'No layer can be quantized, because all of them are dead; of "{first}": {reason}',
        "Check the weights and the training that produced them.",
    )


def _site(name: str, role: Role, found: MeasuredRange, verdict: Verdict) -> Site:
    return Site(
        module=name,
        role=role,
        min=found.low,
        max=found.high,
        amax=found.amax,
        axis=0 if role == "weight" else None,
        policy="float" if verdict.reason else "int8",
        reason=verdict.reason,
        rule=verdict.rule,
    )
