from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from elastic_export.data.evaluate import top1
from elastic_export.data.splits import ArraySplit
from elastic_export.errors import CheckFailed
from elastic_export.quantize.fake import fake_quantize
from elastic_export.quantize.guard import guard
from elastic_export.quantize.record import QuantizationRecord


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
    assert told["returned"] == [{"module": "b", "gain": pytest.approx(3.0)}]
    assert told["drop"] == pytest.approx(0.6)


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
