"""Speed-guided placement: INT8 stays only where the measured runner gets faster by it.

The search knows layers, a function that races variants of the network, and one that says whether
one timing beats another beyond noise. How a variant becomes a file and what runs it, here or on a
board, is the caller's.

Layers that look alike behave alike, so they are tried together as a group, and a whole network
takes a dozen races and not a hundred.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from elastic_export.progress import Progress, no_progress
from elastic_export.quantize.policy import Layer, quantizable_layers
from elastic_export.search.state import load_state, save_state

__all__ = ["Decision", "Group", "Placement", "Ratio", "Verdict", "groups_of", "place"]

Timed = TypeVar("Timed")

Race = Callable[[Mapping[str, frozenset[str]]], Mapping[str, Timed]]
"""From variants, each the layers it keeps in float, to the timings of one interleaved run."""

TOGETHER = "those that lean towards floating point, together"


class Verdict(Protocol):
    """How one timing compares with another, as ``measure.compare.Comparison`` tells it."""

    @property
    def ratio(self) -> float:
        """Time of the first over the second."""

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval of the ratio."""

    @property
    def high(self) -> float:
        """Upper end of it."""

    @property
    def faster(self) -> bool:
        """Whether the first is faster beyond noise."""


@dataclass(frozen=True)
class Group:
    """Layers of one operator, shape and position in their block, under a name for the reader."""

    name: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Ratio:
    """A verdict as plain values: the 95 % interval ``low`` to ``high`` of a ratio of times."""

    ratio: float
    low: float
    high: float
    faster: bool


@dataclass(frozen=True)
class Decision:
    """One race: a group in floating point against the same group in INT8.

    Args:
        group: The group's name.
        layers: Its layers.
        verdict: Time of the whole network with the group in floating point over in INT8.
        float: Whether the group stays in floating point.
    """

    group: str
    layers: tuple[str, ...]
    verdict: Ratio
    float: bool


@dataclass(frozen=True)
class Placement:
    """Where INT8 stays.

    Args:
        kept_float: Layers that go back to floating point because they are faster there.
        layers: How many layers raced.
        decisions: Every race, in order.
        against_policy: Time of the placed network over the one as the rules placed it; None where
            no layer went back.
        against_float: Time of the placed network over the one wholly in floating point.
        confirmed: False where the last race did not confirm what the single ones had found; the
            rules' own placement stays then.
    """

    kept_float: tuple[str, ...]
    layers: int
    decisions: tuple[Decision, ...]
    against_policy: Ratio | None
    against_float: Ratio
    confirmed: bool = True

    @property
    def int8_pays(self) -> bool:
        """Whether INT8, as placed, is faster than floating point beyond noise."""
        return self.against_float.faster

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return asdict(self) | {"int8_pays": self.int8_pays, "summary": self.summary()}

    def summary(self) -> str:
        """Tell the outcome in a sentence or two."""
        won = 0.0 if self.against_policy is None else 100 * (1 - self.against_policy.ratio)
        if len(self.kept_float) == self.layers:
            return f"Every layer is faster in float, {won:.1f} % in all: float is kept."
        if self.kept_float:
            text = f"Kept in float: {_layers(len(self.kept_float))}, {won:.1f} % faster."
        elif not self.confirmed:
            text = "No layer is kept in float: the last race did not confirm the single ones."
        else:
            text = "No layer is faster in float beyond noise."
        speed = f"{1 / self.against_float.ratio:.2f}x the speed of float"
        if self.int8_pays:
            return f"{text} INT8 runs at {speed}."
        return f"{text} INT8 runs at {speed}, not faster beyond noise: float is kept."


def groups_of(module: nn.Module, layers: Collection[str]) -> list[Group]:
    """Sort layers into groups of one operator, weight shape, stride and position in the block.

    Args:
        module: The plain module.
        layers: Names of its ``Linear`` and ``Conv2d`` layers to sort.

    Returns:
        Groups in the order of their first layers; numbers in names are positions in a row of
        blocks, so ``blocks.0.mlp.fc1`` and ``blocks.5.mlp.fc1`` share ``blocks.*.mlp.fc1``.
    """
    found: dict[str, list[str]] = {}
    for name, layer in quantizable_layers(module).items():
        if name in layers:
            found.setdefault(f"{_position(name)} ({_shape(layer)})", []).append(name)
    return [Group(name, tuple(members)) for name, members in found.items()]


def place(
    groups: Sequence[Group],
    race: Race[Timed],
    compare: Callable[[Timed, Timed], Verdict],
    *,
    state: Path | None = None,
    key: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> Placement:
    """Send groups back to floating point, one after the other, where that is faster.

    Each group races once, on top of what went back before it. Groups whose whole interval lies
    below 1 without being beyond noise race once more together. A last race of the network as
    placed, as it was and wholly in floating point confirms the sum, because the best of many
    races is partly luck.

    Args:
        groups: From :func:`groups_of`.
        race: Times variants; a variant that keeps every layer in floating point is asked for too.
        compare: Verdict of the first timing against the second.
        state: A file that keeps every decision, so that an interrupted search goes on.
        key: What the search depends on beside the groups; another key makes a state useless.
        progress: One step for each race.
    """
    identity = {"groups": [asdict(group) for group in groups], "of": dict(key or {})}
    saved = load_state(state, identity)[0] if state is not None else None
    decisions = [_decision(raw) for raw in (saved or {}).get("decisions", ())]
    progress.start("place INT8 by speed", len(groups) + 2)
    progress.advance(len(decisions))

    def decide(group: Group) -> None:
        current = _floats(decisions)
        timed = race({"int8": current, "float": current | set(group.layers)})
        verdict = _ratio(compare(timed["float"], timed["int8"]))
        decisions.append(Decision(group.name, group.layers, verdict, verdict.faster))
        if state is not None:
            save_state(state, identity, {"decisions": [asdict(each) for each in decisions]})
        progress.advance(note=f"{group.name}: float takes {verdict.ratio:.3f} of INT8")

    try:
        for group in groups[len(decisions) :]:
            decide(group)
        single = decisions[: len(groups)]
        leaning = [each for each in single if not each.float and each.verdict.high < 1]
        if len(leaning) > 1 and len(decisions) == len(groups):
            decide(Group(TOGETHER, tuple(name for each in leaning for name in each.layers)))
        everything = frozenset(name for group in groups for name in group.layers)
        return _confirmed(decisions, everything, race, compare)
    finally:
        progress.finish()


def _confirmed(
    decisions: Sequence[Decision],
    everything: frozenset[str],
    race: Race[Timed],
    compare: Callable[[Timed, Timed], Verdict],
) -> Placement:
    floats = _floats(decisions)
    variants = {"policy": frozenset[str](), "float": everything}
    if floats:
        variants["placed"] = floats
    timed = race(variants)
    against_policy = _ratio(compare(timed["placed"], timed["policy"])) if floats else None
    confirmed = against_policy is None or against_policy.faster
    final = "placed" if floats and confirmed else "policy"
    order = [name for each in decisions if each.float for name in each.layers]
    return Placement(
        kept_float=tuple(order) if confirmed else (),
        layers=len(everything),
        decisions=tuple(decisions),
        against_policy=against_policy,
        against_float=_ratio(compare(timed[final], timed["float"])),
        confirmed=confirmed,
    )


def _floats(decisions: Sequence[Decision]) -> frozenset[str]:
    return frozenset(name for each in decisions if each.float for name in each.layers)


def _ratio(verdict: Verdict) -> Ratio:
    return Ratio(verdict.ratio, verdict.low, verdict.high, verdict.faster)


def _decision(raw: Mapping[str, Any]) -> Decision:
    return Decision(raw["group"], tuple(raw["layers"]), Ratio(**raw["verdict"]), raw["float"])


def _position(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _shape(layer: Layer) -> str:
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features} to {layer.out_features}"
    kernel = "x".join(str(size) for size in layer.kernel_size)
    text = f"Conv {kernel} {layer.in_channels} to {layer.out_channels}"
    if layer.groups > 1:
        text += f" in {layer.groups} groups"
    return text if set(layer.stride) == {1} else f"{text}, stride {max(layer.stride)}"


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"
