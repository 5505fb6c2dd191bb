from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from elastic_export.measure.compare import compare
from elastic_export.measure.protocol import Timing
from elastic_export.quantize.speed import Group, groups_of, place

GROUPS = [
    Group("fc1", ("0.fc1", "1.fc1")),
    Group("fc2", ("0.fc2", "1.fc2")),
    Group("qkv", ("0.qkv", "1.qkv")),
]
EVERYTHING = frozenset(name for group in GROUPS for name in group.layers)


def _timing(ms: float, noise: float, seed: int) -> Timing:
    rounds = ms * (1 + noise * np.random.default_rng(seed).standard_normal(20))
    median = float(np.median(rounds))
    return Timing(median, median, median, noise, 20, 20, True, tuple(rounds))


class _Machine:
    """A runner on which each layer has its own time in floating point and in INT8."""

    def __init__(
        self, cost: Mapping[str, tuple[float, float]], base: float = 1.0, noise: float = 0.002
    ) -> None:
        self.cost = cost
        self.base = base
        self.noise = noise
        self.races: list[dict[str, frozenset[str]]] = []

    def ms(self, floats: frozenset[str]) -> float:
        return self.base + sum(
            real if name in floats else integer for name, (real, integer) in self.cost.items()
        )

    def __call__(self, variants: Mapping[str, frozenset[str]]) -> dict[str, Timing]:
        self.races.append(dict(variants))
        return {
            name: _timing(self.ms(floats), self.noise, len(self.races) * 10 + i)
            for i, (name, floats) in enumerate(variants.items())
        }


def _costs(**by_group: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return {name: by_group[group.name] for group in GROUPS for name in group.layers}


def test_a_group_goes_back_where_it_is_faster_in_float() -> None:
    machine = _Machine(_costs(fc1=(2.0, 1.0), fc2=(1.0, 1.6), qkv=(2.0, 1.0)))
    found = place(GROUPS, machine, compare)
    assert found.kept_float == ("0.fc2", "1.fc2")
    assert [d.float for d in found.decisions] == [False, True, False]
    expected = machine.ms(frozenset(found.kept_float)) / machine.ms(frozenset())
    assert found.against_policy is not None
    assert found.against_policy.ratio == pytest.approx(expected, rel=0.01)
    assert found.int8_pays
    assert found.summary().startswith("Kept in float: 2 layers, 14.")


def test_nothing_goes_back_within_noise() -> None:
    """Float is 1 % faster in one group: below what memory layout alone does."""
    machine = _Machine(_costs(fc1=(0.96, 1.0), fc2=(2.0, 1.0), qkv=(2.0, 1.0)), noise=0.01)
    found = place(GROUPS, machine, compare)
    assert found.kept_float == ()
    assert found.against_policy is None
    assert len(machine.races) == len(GROUPS) + 1
    assert "No layer is faster in float beyond noise" in found.summary()


def test_small_gains_count_together() -> None:
    """Each of three groups wins 1.5 %: not beyond noise alone, but so together."""
    machine = _Machine(_costs(fc1=(0.95, 1.0), fc2=(0.95, 1.0), qkv=(0.95, 1.0)), noise=0.001)
    found = place(GROUPS, machine, compare)
    assert [d.float for d in found.decisions] == [False, False, False, True]
    assert set(found.kept_float) == EVERYTHING
    assert not found.int8_pays


def test_where_no_int8_is_fastest_it_says_so() -> None:
    machine = _Machine(_costs(fc1=(1.0, 2.0), fc2=(1.0, 2.0), qkv=(1.0, 2.0)))
    found = place(GROUPS, machine, compare)
    assert set(found.kept_float) == EVERYTHING
    assert not found.int8_pays
    assert found.summary().startswith("Every layer is faster in float, 46.")
    assert found.summary().endswith("% in all: float is kept.")


def test_groups_that_lose_alone_and_win_together_are_found_by_the_last_race() -> None:
    """Each change of form costs a pass; only the whole network in float is free of them."""

    class Islands(_Machine):
        def ms(self, floats: frozenset[str]) -> float:
            return 8.0 if floats == EVERYTHING else 9.0 + 0.5 * len(floats)

    found = place(GROUPS, Islands({}), compare)
    assert found.kept_float == ()
    assert not found.int8_pays
    assert found.against_float.ratio == pytest.approx(9 / 8, rel=0.01)
    assert found.summary().endswith("not faster beyond noise: float is kept.")


def test_a_lucky_race_is_not_believed_without_confirmation() -> None:
    class Lucky(_Machine):
        def __call__(self, variants: Mapping[str, frozenset[str]]) -> dict[str, Timing]:
            timed = super().__call__(variants)
            if len(self.races) == 1:
                timed["float"] = _timing(0.5 * timed["int8"].median_ms, 0.001, 0)
            return timed

    machine = Lucky(_costs(fc1=(1.0, 1.0), fc2=(2.0, 1.0), qkv=(2.0, 1.0)))
    found = place(GROUPS, machine, compare)
    assert found.decisions[0].float
    assert not found.confirmed
    assert found.kept_float == ()
    assert "did not confirm" in found.summary()


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    costs = _costs(fc1=(2.0, 1.0), fc2=(1.0, 1.6), qkv=(2.0, 1.0))
    state = tmp_path / "placement.json"
    whole = _Machine(costs)
    expected = place(GROUPS, whole, compare)

    class Cut(_Machine):
        def __call__(self, variants: Mapping[str, frozenset[str]]) -> dict[str, Timing]:
            if len(self.races) == 2:
                raise KeyboardInterrupt
            return super().__call__(variants)

    with pytest.raises(KeyboardInterrupt):
        place(GROUPS, Cut(costs), compare, state=state)
    later = _Machine(costs)
    found = place(GROUPS, later, compare, state=state)
    assert len(later.races) == len(whole.races) - 2
    assert found.kept_float == expected.kept_float
    assert [d.group for d in found.decisions] == [d.group for d in expected.decisions]
    another = _Machine(costs)
    place(GROUPS, another, compare, state=state, key={"record": "another"})
    assert len(another.races) == len(whole.races)


def test_it_tells_everything_as_plain_json() -> None:
    machine = _Machine(_costs(fc1=(2.0, 1.0), fc2=(1.0, 1.6), qkv=(2.0, 1.0)))
    told = json.loads(json.dumps(place(GROUPS, machine, compare).to_json()))
    assert told["kept_float"] == ["0.fc2", "1.fc2"]
    assert told["int8_pays"] is True
    assert {"group", "layers", "verdict", "float"} == set(told["decisions"][0])


def test_layers_of_one_kind_and_position_share_a_group() -> None:
    def block() -> nn.Module:
        return nn.ModuleDict(
            {"fc1": nn.Linear(32, 64), "fc2": nn.Linear(64, 32), "mix": nn.Conv2d(32, 32, 3)}
        )

    net = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 32, 3, stride=2),
            "blocks": nn.ModuleList([block(), block()]),
            "layer1": nn.Sequential(nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3, stride=2)),
            "head": nn.Linear(32, 10),
        }
    )
    layers = [name for name, part in net.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    groups = groups_of(net, [name for name in layers if name != "head"])
    assert {group.name: group.layers for group in groups} == {
        "stem (Conv 3x3 3 to 32, stride 2)": ("stem",),
        "blocks.*.fc1 (Linear 32 to 64)": ("blocks.0.fc1", "blocks.1.fc1"),
        "blocks.*.fc2 (Linear 64 to 32)": ("blocks.0.fc2", "blocks.1.fc2"),
        "blocks.*.mix (Conv 3x3 32 to 32)": ("blocks.0.mix", "blocks.1.mix"),
        "layer1.* (Conv 3x3 32 to 32)": ("layer1.0",),
        "layer1.* (Conv 3x3 32 to 32, stride 2)": ("layer1.1",),
    }
