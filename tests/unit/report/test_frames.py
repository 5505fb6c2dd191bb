"""Rows, fronts and series: the figures behind tables and plots."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_export.report.frames import (
    accuracy_sources,
    final_rows,
    measured_target,
    rows,
    targets,
)
from elastic_export.report.pareto import front
from elastic_export.report.results_csv import results_csv
from elastic_export.report.series import (
    Point,
    accuracy_latency,
    accuracy_macs,
    latency_macs,
    rank_correlation,
)
from elastic_export.report.units import MISSING, count, milliseconds, percent, seconds, size


def test_one_row_per_descendant_and_target(make_result):
    result = make_result(5, unsettled=(1,))
    table = rows(result)
    assert len(table) == 15
    assert targets(result) == ["host-cpu", "rtx-a6000", "orin-nano-8gb"]
    assert measured_target(result) == "host-cpu"
    second = table[3]
    assert (second.descendant, second.target, second.status) == ("d2", "host-cpu", "inconclusive")
    bundle = result.descendants[1].bundles[0]
    assert second.fp32_median_ms == bundle.latency["fp32"].median_ms
    assert second.int8_p99_ms == bundle.latency["int8"].p99_ms
    assert second.bytes_int8 == bundle.bytes["int8"]
    assert second.top1_2_4 == result.descendants[1].accuracy["2:4"].top1
    assert (second.chosen, second.threads, second.batch_size) == ("int8", 1, 1)


def test_int8_accuracy_is_that_of_the_targets_own_flavour(make_result):
    result = make_result(1)
    host, gpu, _ = rows(result)
    descendant = result.descendants[0]
    assert host.top1_int8 == descendant.bundles[0].accuracy["int8"].top1
    assert gpu.top1_int8 == descendant.bundles[1].accuracy["int8"].top1
    assert (host.how_int8, gpu.how_int8) == ("deployed", "emulated")
    assert accuracy_sources(result) == {
        "deployed": ["host-cpu"],
        "emulated": ["rtx-a6000", "orin-nano-8gb"],
    }


def test_a_figure_of_another_machine_is_emulated(make_result):
    host, gpu, _ = [row for row in rows(make_result(1)) if row.descendant == "d1"]
    assert (host.how_fp32, host.how_2_4, host.how_int8) == ("deployed",) * 3
    assert (gpu.how_fp32, gpu.how_2_4, gpu.how_int8) == ("emulated",) * 3


def test_final_rows_show_the_measured_target_wherever_it_stands(make_result):
    result = make_result(2)
    turned = result.model_copy(
        update={
            "descendants": tuple(
                d.model_copy(update={"bundles": d.bundles[::-1]}) for d in result.descendants
            )
        }
    )
    assert [row.target for row in final_rows(turned)] == ["host-cpu", "host-cpu"]


def test_gaps_are_none_and_never_zero(make_result):
    bare = rows(make_result(1, int8=False, sparse=False, latencies=False))[0]
    for name in ("top1_2_4", "top1_int8", "bytes_int8", "fp32_median_ms", "int8_p99_ms"):
        assert getattr(bare, name) is None
    assert (bare.status, bare.chosen, bare.runner) == ("", "", "")
    without_bundle = rows(make_result(1, bundles=False))[0]
    assert without_bundle.target == ""
    assert without_bundle.top1_int8 is not None
    assert final_rows(make_result(0)) == []


def test_csv_reads_back(make_result):
    result = make_result(2, names=['a,"b"\nc', "d2"], latencies=False)
    lines = list(csv.DictReader(io.StringIO(results_csv(result))))
    assert len(lines) == 6
    assert lines[0]["descendant"] == 'a,"b"\nc'
    assert lines[0]["fp32_median_ms"] == ""
    assert int(lines[0]["hardware_macs"]) == result.descendants[0].cost.hardware_macs
    assert float(lines[0]["top1_int8"]) == rows(result)[0].top1_int8


def test_front_on_a_known_set():
    assert front([(2, 5), (1, 3), (3, 4), (1, 3)]) == [1, 0]
    assert front([]) == []
    assert front([(1, 1)]) == [0]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=40))
def test_front_holds_exactly_what_nothing_beats(points):
    found = front(points)
    kept = {points[i] for i in found}
    assert len(kept) == len(found)
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)
    for cost, value in points:
        beaten = any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in set(points))
        assert ((cost, value) in kept) is not beaten


def test_series_say_what_is_measured_where(make_result):
    result = make_result(5, unsettled=(1,))
    macs = accuracy_macs(result)
    assert len(macs.points) == 15
    assert not any(point.hollow for point in macs.points)
    first = {p.precision: p for p in macs.points if p.descendant == "d1"}
    assert first["fp32"].x == result.descendants[0].cost.macs
    assert first["int8"].x == result.descendants[0].cost.hardware_macs < first["fp32"].x

    latency = accuracy_latency(result)
    assert {(p.descendant, p.precision) for p in latency.points if p.hollow} == {("d2", "int8")}
    assert [p.x for p in latency.front] == sorted(p.x for p in latency.front)
    assert [p.y for p in latency.front] == sorted(p.y for p in latency.front)
    assert "batch 1, 1 thread" in latency.x_label

    last = latency_macs(result)
    # INT8 is always faster at equal MACs in this result, so the front is the INT8 points.
    assert {p.precision for p in last.front} == {"int8"}
    assert "fp32 1.00, int8 1.00" in last.caption


def test_series_without_figures_are_empty(make_result):
    assert accuracy_latency(make_result(3, latencies=False)).points == ()
    assert latency_macs(make_result(3, bundles=False)).points == ()
    dense = accuracy_macs(make_result(3, sparse=False))
    assert dense.x_label == "MACs per image"


def test_rank_correlation():
    def points(ys):
        return [Point("d", "fp32", x, y) for x, y in enumerate(ys)]

    assert rank_correlation(points([1, 2, 3, 4])) == pytest.approx(1.0)
    assert rank_correlation(points([4, 3, 2, 1])) == pytest.approx(-1.0)
    # Worked by hand: ranks 0,1.5,1.5,3 against 0..3.
    assert rank_correlation(points([1, 2, 2, 3])) == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    assert rank_correlation(points([1, 2, 3])) is None
    assert rank_correlation(points([1, 1, 1, 1])) is None


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(999), "999"),
        (count(1000), "1.00 k"),
        (count(999_700), "1.00 M"),
        (count(1_234_567), "1.23 M"),
        (count(17_560_000_000), "17.6 G"),
        (count(None), MISSING),
        (count(0), "0"),
        (size(412_345), "412 kB"),
        (size(0), "0 B"),
        (milliseconds(0.5123), "0.512"),
        (milliseconds(9.999), "10.0"),
        (milliseconds(123.4), "123"),
        (milliseconds(None), MISSING),
        (percent(97.25), "97.2"),
        (percent(100.0), "100.0"),
        (seconds(0.84), "0.8 s"),
        (seconds(59.7), "1 min 0 s"),
        (seconds(200), "3 min 20 s"),
        (seconds(3700), "1 h 1 min"),
    ],
)
def test_units(shown, expected):
    assert shown == expected
