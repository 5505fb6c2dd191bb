from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_export.data.evaluate import top1
from elastic_export.data.splits import ArraySplit
from elastic_export.errors import CheckFailed
from elastic_export.quantize.fake import fake_quantize
from elastic_export.quantize.guard import guard
from elastic_export.quantize.record import QuantizationRecord, Site


class _Costs:
    """An accuracy to which every quantized layer adds its cost."""

    def __init__(self, **cost: float) -> None:
        self.cost = cost
        self.calls = 0

    def __call__(self, record: QuantizationRecord) -> float:
        self.calls += 1
        return 90.0 - sum(self.cost[name] for name in record.quantized_modules())


def test_a_record_that_holds_is_evaluated_once(by_hand) -> None:
    costs = _Costs(a=0.2, b=0.3, c=0.4)
    report = guard(by_hand, costs, baseline=90.0, max_drop=1.0)
    assert report.record is by_hand
    assert (report.evaluations, costs.calls, report.returned) == (1, 1, ())
    assert report.drop == pytest.approx(0.9)


def test_one_layer_is_enough_and_needs_no_further_evaluation(by_hand) -> None:
    costs = _Costs(a=0.2, b=3.0, c=0.4)
    report = guard(by_hand, costs, baseline=90.0, max_drop=1.0)
    assert [(r.module, r.gain) for r in report.returned] == [("b", pytest.approx(3.0))]
    assert report.record.quantized_modules() == ["a", "c"]
    assert "guard allows 1 points" in report.record.site("b", "weight").reason
    assert (report.evaluations, costs.calls) == (4, 4)
    assert report.after == pytest.approx(89.4)
    assert report.before == pytest.approx(86.4)


def test_layers_return_in_the_order_of_what_they_cost(by_hand) -> None:
    report = guard(by_hand, _Costs(a=2.0, b=0.9, c=3.0), baseline=90.0, max_drop=1.0)
    assert [r.module for r in report.returned] == ["c", "a"]
    assert report.record.quantized_modules() == ["b"]


def test_ties_return_the_earlier_layer(by_hand) -> None:
    report = guard(by_hand, _Costs(a=1.0, b=1.0, c=1.0), baseline=90.0, max_drop=2.0)
    assert [r.module for r in report.returned] == ["a"]


def test_at_most_two_evaluations_per_layer(by_hand) -> None:
    costs = _Costs(a=1.0, b=1.0, c=1.0)
    report = guard(by_hand, costs, baseline=90.0, max_drop=0.0)
    assert len(report.returned) == 3
    assert report.record.quantized_modules() == []
    assert costs.calls <= 6


def test_a_baseline_out_of_reach_fails(by_hand) -> None:
    with pytest.raises(CheckFailed, match=r"misses 95\.00 %"):
        guard(by_hand, _Costs(a=0, b=0, c=0), baseline=95.0, max_drop=1.0)


def test_an_accuracy_that_is_no_number_fails(by_hand) -> None:
    with pytest.raises(CheckFailed, match="not a number"):
        guard(by_hand, lambda _: float("nan"), baseline=90.0, max_drop=1.0)


def test_the_report_is_plain_json(by_hand) -> None:
    report = guard(by_hand, _Costs(a=0.2, b=3.0, c=0.4), baseline=90.0, max_drop=1.0)
    told = json.loads(json.dumps(report.to_json()))
    assert told["returned"] == [
        {"module": "b", "gain": pytest.approx(3.0), "saved_ms": None, "source": "none"}
    ]
    assert told["drop"] == pytest.approx(0.6)


def test_points_are_weighed_against_milliseconds(by_hand) -> None:
    """c costs the most accuracy, but saves ten times the time of b."""
    savings = {"a": 1.0, "b": 0.5, "c": 5.0}
    report = guard(
        by_hand, _Costs(a=0.1, b=2.0, c=3.0), baseline=90.0, max_drop=3.2, saved_ms=savings
    )
    assert [r.module for r in report.returned] == ["b"]
    assert report.to_json()["returned"] == [
        {"module": "b", "gain": pytest.approx(2.0), "saved_ms": 0.5, "source": "measured"}
    ]


@pytest.mark.parametrize("nothing", [0.0, -0.4])
def test_a_layer_that_saves_nothing_returns_first(by_hand, nothing: float) -> None:
    savings = {"a": nothing, "b": 1.0, "c": 1.0}
    report = guard(
        by_hand, _Costs(a=0.1, b=2.0, c=3.0), baseline=90.0, max_drop=2.05, saved_ms=savings
    )
    assert [r.module for r in report.returned] == ["a", "c"]


def test_a_layer_that_saves_nothing_stays_where_its_return_would_cost(by_hand) -> None:
    savings = {"a": 0.0, "b": 1.0, "c": 1.0}
    costs = _Costs(a=-0.5, b=2.0, c=3.0)
    report = guard(by_hand, costs, baseline=90.0, max_drop=0.0, saved_ms=savings)
    assert [r.module for r in report.returned] == ["c", "b"]


def test_a_layer_nobody_timed_is_told_apart(by_hand) -> None:
    """It counts as one of the median saving, 2 ms, so that it stands between the others."""
    savings = {"a": 1.0, "c": 3.0}
    report = guard(
        by_hand, _Costs(a=2.0, b=2.0, c=2.0), baseline=90.0, max_drop=0.0, saved_ms=savings
    )
    assert [(r.module, r.source) for r in report.returned] == [
        ("a", "measured"),
        ("b", "none"),
        ("c", "measured"),
    ]


def test_nothing_is_timed_where_the_record_holds(by_hand) -> None:
    def never() -> dict[str, float]:
        raise AssertionError("layers were timed")

    report = guard(
        by_hand, _Costs(a=0.2, b=0.3, c=0.4), baseline=90.0, max_drop=1.0, saved_ms=never
    )
    assert report.returned == ()
    assert report.evaluations == 1


def _many(count: int) -> QuantizationRecord:
    one = np.ones((), np.float32)
    sites = {
        (f"l{i}", role): Site(f"l{i}", role, -1.0, 1.0, one, None, "int8")
        for i in range(count)
        for role in ("input", "weight", "output")
    }
    return QuantizationRecord(sites, "max", 1, "data", "model")


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.floats(-0.5, 5.0), min_size=1, max_size=40),
    saved=st.lists(st.floats(-1.0, 5.0), min_size=40, max_size=40),
    allowed=st.floats(0.0, 20.0),
)
def test_what_is_kept_was_measured_and_is_minimal(
    costs: list[float], saved: list[float], allowed: float
) -> None:
    """Never more than 2 L evaluations, and one layer fewer would not have held."""
    record = _many(len(costs))
    by_name = {f"l{i}": cost for i, cost in enumerate(costs)}
    measure = _Costs(**by_name)
    savings = dict(zip(by_name, saved, strict=False))
    report = guard(record, measure, 90.0, allowed, saved_ms=savings)
    assert measure.calls == report.evaluations <= 2 * len(costs)
    assert report.after == measure(report.record)
    assert report.drop <= allowed
    returned = [entry.module for entry in report.returned]
    assert report.record.quantized_modules() == [n for n in by_name if n not in returned]
    if returned:
        without_last = record.with_float(dict.fromkeys(returned[:-1], "why"))
        assert 90.0 - measure(without_last) > allowed


def test_bisection_spares_evaluations() -> None:
    """48 layers as in DeiT-S: 1 for the record, 48 alone, and fewer than 8 to find how many."""
    costs = {f"l{i}": 0.1 + 0.01 * i for i in range(48)}
    report = guard(_many(48), _Costs(**costs), baseline=90.0, max_drop=5.0)
    assert 0 < len(report.returned) < 48
    assert report.evaluations <= 49 + 7


def test_an_interrupted_guard_goes_on_where_it_was(by_hand, tmp_path) -> None:
    costs = {"a": 2.0, "b": 0.9, "c": 3.0}
    whole = guard(by_hand, _Costs(**costs), baseline=90.0, max_drop=1.0)
    state = tmp_path / "guard.json"

    class Cut(_Costs):
        def __call__(self, record: QuantizationRecord) -> float:
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(record)

    with pytest.raises(KeyboardInterrupt):
        guard(by_hand, Cut(**costs), baseline=90.0, max_drop=1.0, state=state)
    later = _Costs(**costs)
    report = guard(by_hand, later, baseline=90.0, max_drop=1.0, state=state)
    assert later.calls == whole.evaluations - 3
    assert report.to_json() == whole.to_json()
    assert report.record.digest == whole.record.digest


def test_savings_are_measured_once_over_interruptions(by_hand, tmp_path) -> None:
    """Another measurement would give another order, and with it another record."""
    state = tmp_path / "guard.json"
    costs = {"a": 2.0, "b": 2.1, "c": 2.2}
    asked = {"baseline": 90.0, "max_drop": 4.5, "state": state}
    first = guard(by_hand, _Costs(**costs), saved_ms={"a": 1.0, "b": 9.0, "c": 9.0}, **asked)
    again = guard(by_hand, _Costs(**costs), saved_ms={"a": 9.0, "b": 9.0, "c": 1.0}, **asked)
    assert [r.module for r in first.returned] == [r.module for r in again.returned] == ["a"]


def test_a_state_of_another_record_is_not_used(by_hand, tmp_path) -> None:
    state = tmp_path / "guard.json"
    guard(by_hand, _Costs(a=0, b=0, c=0), baseline=90.0, max_drop=1.0, state=state)
    other = replace(by_hand, model_digest="another")
    report = guard(other, _Costs(a=9, b=0, c=0), baseline=90.0, max_drop=1.0, state=state)
    assert [r.module for r in report.returned] == ["a"]


def test_the_layer_with_a_ruined_range_is_the_one_that_returns(net, record, make_split) -> None:
    x = make_split(200).x
    with torch.no_grad():  # let the network tell classes apart
        net.head.bias -= net(x).mean(0)
    truth = ArraySplit("search", x, net(x).argmax(1), 10)
    ruined = dict(record.sites)
    site = record.site("mid", "input")
    ruined[("mid", "input")] = replace(site, amax=np.float32(site.amax * 1e-3).reshape(()))
    broken = replace(record, sites=ruined)

    def accuracy(candidate: QuantizationRecord) -> float:
        return top1(fake_quantize(net, candidate), truth)

    assert accuracy(broken) + 20 < accuracy(record)
    report = guard(broken, accuracy, baseline=100.0, max_drop=105.0 - accuracy(record))
    assert [r.module for r in report.returned] == ["mid"]
    assert report.after == accuracy(report.record)
