"""The protocol against a fake clock: what is steady settles, what is not does not."""

from __future__ import annotations

import gc
import itertools
import time

import numpy as np
import pytest

from elastic_export.config.recipe import MeasureConfig
from elastic_export.measure.protocol import (
    MIN_SAMPLES,
    _order,
    measure_interleaved,
    unsettled_because,
)

SETTINGS = MeasureConfig(min_samples=12, sample_ms=10.0, warmup_ms=20.0)


class World:
    """A clock that only moves when a candidate works, and a log of who worked when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def candidate(self, name, cost_ms):
        """Work for ``cost_ms(now_ms, call number)``."""
        count = 0

        def run() -> None:
            nonlocal count
            self.log.append(name)
            self.now += cost_ms(self.now * 1e3, count) / 1e3
            count += 1

        return run


def noisy(median: float, spread: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    return lambda now, count: median * (1 + spread * rng.standard_normal())


class Watch:
    def __init__(self) -> None:
        self.tasks: list[tuple[str, int]] = []
        self.done = 0
        self.open = 0

    def start(self, label: str, total: int) -> None:
        self.tasks.append((label, total))
        self.open += 1

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps

    def finish(self) -> None:
        self.open -= 1


def test_steady_candidates_settle_with_the_right_figures():
    world = World()
    timings = measure_interleaved(
        {
            "a": world.candidate("a", lambda now, n: 1.0),
            "b": world.candidate("b", lambda now, n: 0.25),
        },
        SETTINGS,
        clock=world.clock,
    )
    assert list(timings) == ["a", "b"]
    for name, expected in (("a", 1.0), ("b", 0.25)):
        timing = timings[name]
        assert timing.settled
        assert timing.unsettled_because == ""
        assert timing.median_ms == pytest.approx(expected)
        assert timing.p99_ms == pytest.approx(expected)
        assert timing.cov == pytest.approx(0, abs=1e-9)
        assert timing.samples == 12
        assert len(timing.sample_ms) == 12
    # 10 ms of 1 ms and of 0.25 ms calls, fixed by the warm-up.
    assert timings["a"].runs == 120
    assert timings["b"].runs == 480


def test_percentiles_are_over_single_calls():
    world = World()
    slow_every_20th = world.candidate("a", lambda now, n: 3.0 if n % 20 == 0 else 1.0)
    timing = measure_interleaved({"a": slow_every_20th}, SETTINGS, clock=world.clock)["a"]
    assert timing.median_ms == pytest.approx(1.0)
    assert timing.p90_ms == pytest.approx(1.0)
    assert timing.p99_ms == pytest.approx(3.0)
    assert timing.cov > 0.2
    assert timing.settled


def test_drift_does_not_settle_and_is_measured_once_more():
    world = World()
    watch = Watch()
    drifting = world.candidate("a", lambda now, n: 1.0 + now / 300)
    timing = measure_interleaved({"a": drifting}, SETTINGS, clock=world.clock, progress=watch)["a"]
    assert not timing.settled
    assert "half" in timing.unsettled_because
    assert [label for label, _ in watch.tasks] == [
        "Warming up",
        "Measuring latency",
        "Measuring once more",
    ]
    assert watch.done == sum(total for _, total in watch.tasks)
    assert watch.open == 0


def test_bimodal_noise_does_not_settle():
    world = World()
    # The mode changes with every round of about 10 ms, so the halves agree but samples do not.
    bimodal = world.candidate("a", lambda now, n: 1.0 if int(now / 11) % 2 else 1.4)
    timing = measure_interleaved({"a": bimodal}, SETTINGS, clock=world.clock)["a"]
    assert not timing.settled


def test_a_disturbance_that_passes_is_forgotten():
    world = World()
    disturbed = world.candidate("a", lambda now, n: 1.5 if 60 < now < 110 else 1.0)
    timing = measure_interleaved({"a": disturbed}, SETTINGS, clock=world.clock)["a"]
    assert timing.settled
    assert timing.p99_ms == pytest.approx(1.0), "samples of the first attempt were kept"


def test_every_call_of_one_attempt_covers_all_candidates():
    """Only timings of the same rounds can be compared, so an unsettled one repeats all."""
    world = World()
    timings = measure_interleaved(
        {
            "steady": world.candidate("steady", lambda now, n: 1.0),
            "drifting": world.candidate("drifting", lambda now, n: 1.0 + now / 300),
        },
        SETTINGS,
        clock=world.clock,
    )
    assert timings["steady"].settled
    assert not timings["drifting"].settled
    assert world.log.count("steady") > 2 * timings["steady"].runs


def test_fewer_samples_than_the_rule_needs_cannot_settle():
    world = World()
    few = SETTINGS.model_copy(update={"min_samples": MIN_SAMPLES - 1})
    timing = measure_interleaved(
        {"a": world.candidate("a", lambda now, n: 1.0)}, few, clock=world.clock
    )["a"]
    assert not timing.settled
    assert timing.unsettled_because == "9 samples are fewer than 10"
    assert timing.samples == 9
    # Repeating could not help.
    assert len(world.log) < 2 * timing.runs


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_positions_and_neighbours_are_balanced(count):
    names = [f"c{i}" for i in range(count)]
    orders = [_order(names, number) for number in range(2 * count)]
    for name in names:
        positions = sorted(order.index(name) for order in orders)
        assert positions == sorted(list(range(count)) * 2)
    for first in names:
        for second in names:
            before = sum(
                a == first and b == second for o in orders for a, b in itertools.pairwise(o)
            )
            after = sum(
                a == second and b == first for o in orders for a, b in itertools.pairwise(o)
            )
            assert before == after


def test_candidates_take_turns_within_each_round():
    world = World()
    settings = MeasureConfig(min_samples=10, sample_ms=1.0, warmup_ms=0.0)
    candidates = {name: world.candidate(name, lambda now, n: 1.0) for name in "abc"}
    measure_interleaved(candidates, settings, clock=world.clock)
    rounds = world.log[9:]  # after three warm-up calls of each
    assert len(rounds) == 30
    for begin in range(0, 30, 3):
        assert sorted(rounds[begin : begin + 3]) == ["a", "b", "c"]
    assert len({tuple(rounds[i : i + 3]) for i in range(0, 30, 3)}) > 3


def test_garbage_collection_is_off_in_samples_and_on_again_after_an_error():
    seen: list[bool] = []

    def run() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 8:
            raise RuntimeError("the runner broke")

    settings = MeasureConfig(min_samples=10, sample_ms=0.001, warmup_ms=0.0)
    watch = Watch()
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broke"):
        measure_interleaved({"a": run}, settings, progress=watch)
    assert gc.isenabled()
    assert seen[:3] == [True] * 3
    assert not any(seen[3:])
    assert watch.open == 0


def test_real_callables_are_measured_in_milliseconds():
    settings = MeasureConfig(min_samples=10, sample_ms=12.0, warmup_ms=10.0)
    timings = measure_interleaved(
        {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.006)}, settings
    )
    assert 2.0 <= timings["short"].median_ms < timings["long"].median_ms
    assert 6.0 <= timings["long"].median_ms < 30.0
    assert timings["short"].p99_ms >= timings["short"].p90_ms >= timings["short"].median_ms


def test_nothing_to_measure():
    assert measure_interleaved({}, SETTINGS) == {}


def test_noise_within_the_rule_settles():
    world = World()
    run = world.candidate("a", noisy(1.0, 0.02))
    assert measure_interleaved({"a": run}, SETTINGS, clock=world.clock)["a"].settled


@pytest.mark.parametrize(
    ("samples", "settled"),
    [
        ([1.0] * 10, True),
        ([1.0] * 8 + [2.0] * 2, True),  # two of ten off, medians of the halves equal
        ([1.0] * 7 + [2.0] * 3, False),
        ([1.0] * 5 + [1.049] * 5, True),
        ([1.0] * 5 + [1.06] * 5, False),
        ([1.0, 1.2] * 5, False),
        ([1.0] * 9, False),
        ([0.0] * 10, False),
    ],
)
def test_settled_rule(samples, settled):
    assert (unsettled_because(samples) == "") is settled


def test_latency_record_carries_the_conditions():
    world = World()
    timing = measure_interleaved(
        {"a": world.candidate("a", lambda now, n: 1.0)}, SETTINGS, clock=world.clock
    )["a"]
    latency = timing.latency(
        runner="onnxruntime", precision="int8", batch_size=2, threads=1, machine={"cpu": "x"}
    )
    assert latency.status == "settled"
    assert latency.median_ms == timing.median_ms
    assert (latency.batch_size, latency.threads, latency.machine) == (2, 1, {"cpu": "x"})
