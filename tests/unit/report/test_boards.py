"""Figures of boards stand beside those of this machine, and are never taken for them."""

from __future__ import annotations

import csv
import io

from rich.console import Console

from elastic_export.report.frames import (
    latency_rows,
    measured_target,
    measured_targets,
    where_measured,
)
from elastic_export.report.html import to_html
from elastic_export.report.results_csv import latencies_csv
from elastic_export.report.series import accuracy_latency, latency_macs
from elastic_export.report.summary import sentences
from elastic_export.report.terminal import render
from elastic_export.report.write import write_report

ORIN = "orin-nano-8gb@jp6.2:15W"


def text(result, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render(result, width))
    return console.file.getvalue()


def test_this_machine_is_the_table_and_a_board_has_its_own(make_result):
    result = make_result(3, board=True)  # the board's bundle comes first
    assert measured_target(result) == "host-cpu"
    assert measured_targets(result) == ["host-cpu", ORIN]
    assert where_measured(result, ORIN) == "user@orin"
    assert where_measured(result, "host-cpu") == where_measured(result, "rtx-a6000") == ""
    shown = text(result, 120)
    assert "digits, measured on host-cpu" in shown
    table = shown[shown.index(f"{ORIN}, on user@orin") :]
    lines = [line.split() for line in table.splitlines() if line.strip().startswith("d1 ")]
    assert [line[1] for line in lines] == ["fp32", "fp16", "int8"]
    wanted = [row for row in latency_rows(result, ORIN) if row.descendant == "d1"]
    # MACs are written "398 k", in two words.
    assert lines[2][5:9] == [
        f"{x:.3g}"
        for x in (wanted[2].median_ms, wanted[2].p99_ms, wanted[2].compute_ms, wanted[2].energy_mj)
    ]
    assert lines[2][9:] == ["1", "of", "3", "yes", "settled", "unpinned"]
    assert "mJ: one batch, net of idle." in shown


def test_a_board_alone_is_the_table(make_result):
    result = make_result(2, board=True, latencies=False)
    assert measured_target(result) == ORIN
    assert f"digits, measured on {ORIN}" in text(result, 120)
    told = sentences(result)
    assert not any("was measured." in sentence for sentence in told)


def test_sentences_tell_of_boards(make_result):
    told = " ".join(sentences(make_result(3, board=True)))
    assert f"On {ORIN}, measured on user@orin, the chosen files take 1.07 to 2.24 ms" in told
    assert "INT8 runs at 1.25 times the speed of FP16" in told
    assert "Nothing was timed on rtx-a6000 and orin-nano-8gb (the page holds estimates);" in told
    assert ORIN not in told[told.index("Nothing was timed on") :]
    assert "All 15 latency measurements settled." in told


def test_marks_and_doubts_are_in_the_rows(make_result):
    result = make_result(1, board=True)
    lines = list(csv.DictReader(io.StringIO(latencies_csv(result))))
    assert [(line["target"], line["precision"]) for line in lines] == [
        *[(ORIN, p) for p in ("fp32", "fp16", "int8")],
        *[("host-cpu", p) for p in ("fp32", "int8")],
    ]
    assert [line["chosen"] for line in lines] == ["False", "False", "True", "False", "True"]
    int8 = lines[2]
    assert (int8["marks"], int8["status"], int8["sparse_picked"]) == ("unpinned", "settled", "1")
    assert (lines[3]["on"], lines[3]["energy_mj"]) == ("", "")


def test_plots_are_drawn_for_each_target(make_result, tmp_path):
    result = make_result(4, board=True)
    here, there = accuracy_latency(result), accuracy_latency(result, ORIN)
    assert {point.precision for point in here.points} == {"fp32", "int8"}
    assert {point.precision for point in there.points} == {"fp32", "fp16", "int8"}
    assert (here.name, there.name) == (
        "accuracy-latency",
        "accuracy-latency.orin-nano-8gb@jp6.2-15W",
    )
    assert "on this machine" in here.caption
    assert "on the board user@orin" in there.caption
    assert "TensorRT 10.3.0" in there.x_label
    assert latency_macs(result, ORIN).name == "latency-macs.orin-nano-8gb@jp6.2-15W"
    written = write_report(result, tmp_path)
    assert len([name for name in written if name.endswith(".svg")]) == 5
    # A later report without the board leaves no plot of it behind, and touches nothing else.
    (tmp_path / "plots" / "mine.svg").write_text("x")
    write_report(make_result(4), tmp_path)
    assert {path.name for path in (tmp_path / "plots").glob("*.svg")} == {
        "accuracy-macs.svg",
        "accuracy-latency.svg",
        "latency-macs.svg",
        "mine.svg",
    }


def test_the_page_tells_of_the_board(make_result):
    page = to_html(make_result(2, board=True), [])
    assert "measured on user@orin" in page
    assert "Imaginary Orin" in page
    assert "Latency on user@orin" in page
    assert "1 of 3 eligible" in page
    without = to_html(make_result(2), [])
    assert "Latency on " not in without


def test_a_board_fits_a_narrow_terminal(make_result):
    shown = text(make_result(2, board=True), 80)
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "\u2026" not in shown
    assert "unpinned" in shown


def test_estimates_stand_apart_with_their_range(make_result):
    result = make_result(2)
    page = to_html(result, [])
    assert "Latency estimates, not measured (2)" in page
    assert "0.375 to 0.665" in page
    assert "fitted to 66 published figures" in page
    assert "Latency for rtx-a6000" in page
    assert "Nothing was timed on rtx-a6000 and orin-nano-8gb (the page holds estimates)" in page
    # Nowhere else: not in tables of measured figures, not in their files, not in plots.
    assert "0.500" not in text(result, 120)
    assert {row.target for row in latency_rows(result)} == {"host-cpu"}
    assert {point.x for point in accuracy_latency(result).points}.isdisjoint({0.5})
    none = to_html(make_result(2, gpu=False), [])
    assert "No latency here is an estimate" in none
