"""Choosing between candidates: a difference counts only beyond noise."""

from __future__ import annotations

import numpy as np
import pytest

from elastic_export.config.recipe import MeasureConfig
from elastic_export.measure.compare import choose, compare
from elastic_export.measure.protocol import Timing, measure_interleaved, unsettled_because


def timing(samples) -> Timing:
    values = tuple(float(value) for value in samples)
    reason = unsettled_because(values)
    return Timing(
        median_ms=float(np.median(values)),
        p90_ms=float(np.percentile(values, 90)),
        p99_ms=float(np.percentile(values, 99)),
        cov=0.0,
        samples=len(values),
        runs=len(values),
        settled=not reason,
        sample_ms=values,
        unsettled_because=reason,
    )


def around(median: float, spread: float, seed: int, rounds: int = 12) -> np.ndarray:
    return median * (1 + spread * np.random.default_rng(seed).standard_normal(rounds))


def test_clear_win_is_chosen_with_its_interval():
    verdict = compare(timing(around(0.5, 0.01, 1)), timing(around(1.0, 0.01, 2)))
    assert verdict.ratio == pytest.approx(0.5, rel=0.03)
    assert verdict.low <= verdict.ratio <= verdict.high
    assert verdict.high - verdict.low < 0.05
    name, reason = choose(
        {"fp32": timing(around(1.0, 0.01, 2)), "int8": timing(around(0.5, 0.01, 1))}
    )
    assert name == "int8"
    assert reason == "int8 runs at 1.99x the speed of fp32 (95 % interval 1.98-2.01x)."


def test_slower_int8_leaves_fp32():
    name, reason = choose({"fp32": timing([1.0] * 10), "int8": timing([1.3] * 10)})
    assert name == "fp32"
    assert reason == (
        "int8 runs at 0.77x the speed of fp32 (95 % interval 0.77-0.77x); it is slower."
    )


def test_equal_candidates_leave_fp32_whatever_the_noise():
    """A/A comparisons: what is the same must not be told apart."""
    chosen = [
        choose(
            {
                "fp32": timing(around(1.0, 0.02, 2 * seed)),
                "int8": timing(around(1.0, 0.02, 2 * seed + 1)),
            }
        )[0]
        for seed in range(200)
    ]
    assert chosen.count("int8") <= 2


def test_difference_below_the_floor_is_not_acted_on():
    name, reason = choose({"fp32": timing([1.0] * 10), "int8": timing([0.985] * 10)})
    assert name == "fp32"
    assert "within noise" in reason


def test_common_drift_cancels():
    """Both slow down by half; paired by round, the 10 % between them stays visible."""
    drift = np.linspace(1.0, 1.5, 12)
    slow, fast = timing(drift), timing(0.9 * drift)
    verdict = compare(fast, slow)
    assert not verdict.settled
    assert verdict.ratio == pytest.approx(0.9)
    assert verdict.high == pytest.approx(0.9)
    unpaired_spread = np.std(drift) / np.median(drift)
    assert verdict.high - verdict.low < unpaired_spread / 10
    assert choose({"fp32": slow, "int8": fast})[0] == "int8"


def test_inconclusive_measurement_needs_every_round():
    base = timing([1.0, 1.5] * 6)
    mostly = np.array([0.5, 0.75] * 6)
    name, reason = choose({"fp32": base, "int8": timing(mostly)})
    assert name == "int8"
    assert "faster in every round" in reason
    mostly[3] = 1.49
    name, reason = choose({"fp32": base, "int8": timing(mostly)})
    assert name == "fp32"
    assert "inconclusive" in reason


def test_fastest_of_several_is_chosen():
    name, _ = choose(
        {
            "fp32": timing([1.0] * 10),
            "fp16": timing([0.8] * 10),
            "int8": timing([0.7] * 10),
        }
    )
    assert name == "int8"


def test_only_the_baseline():
    assert choose({"fp32": timing([1.0] * 10)}) == ("fp32", "fp32 is the only one measured.")


def test_missing_baseline_and_unpaired_rounds_are_bugs():
    with pytest.raises(ValueError, match="fp32 was not measured"):
        choose({"int8": timing([1.0] * 10)})
    with pytest.raises(ValueError, match="10 and 12 rounds"):
        compare(timing([1.0] * 10), timing([1.0] * 12))


def test_real_work_of_different_size_is_told_apart():
    small, large = np.ones((60, 60)), np.ones((240, 240))
    settings = MeasureConfig(min_samples=10, sample_ms=5.0, warmup_ms=10.0)
    timings = measure_interleaved(
        {"fp32": lambda: large @ large, "int8": lambda: small @ small}, settings
    )
    assert choose(timings)[0] == "int8"


def test_comparison_is_deterministic():
    a, b = timing(around(1.0, 0.05, 0)), timing(around(1.1, 0.05, 1))
    assert compare(a, b) == compare(a, b)
