"""The final table in terminals of different widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from elastic_export.report.summary import figures, sentences
from elastic_export.report.terminal import render
from elastic_export.report.units import MISSING


def text(result, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render(result, width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [120, 80])
def test_every_figure_of_the_issue_is_shown_whole(make_result, width):
    shown = text(make_result(5, unsettled=(1,)), width)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "…" not in shown
    for word in ("d5", "98.1", "97.5", "97.2", "2.09 M", "327 k", "400 kB", "124 kB"):
        assert word in shown, word
    for word in ("0.510", "0.607", "0.319", "0.379", "int8", "settled", "inconcl"):
        assert word in shown, word
    assert "host-cpu" in shown


def test_wide_table_has_one_line_per_descendant(make_result):
    lines = text(make_result(3), 120).splitlines()
    line = next(line for line in lines if line.strip().startswith("d1 "))
    assert line.split()[-1] == "settled"
    assert line.split()[-2] == "int8"


def test_columns_without_figures_are_left_out(make_result):
    shown = text(make_result(2, int8=False, sparse=False, latencies=False), 120)
    for word in ("int8", "2:4", "p99", "chosen", "settled", MISSING):
        assert word not in shown, word
    assert "No latency was measured." in shown


def test_some_gaps_are_dashes(make_result):
    result = make_result(2)
    first = result.descendants[0]
    bundle = first.bundles[0]
    without = bundle.model_copy(update={"latency": {"fp32": bundle.latency["fp32"]}})
    result = result.model_copy(
        update={
            "descendants": (
                first.model_copy(update={"bundles": (without,)}),
                *result.descendants[1:],
            )
        }
    )
    line = next(row for row in text(result, 120).splitlines() if row.strip().startswith("d1 "))
    assert line.count(MISSING) == 2


@pytest.mark.parametrize("width", [120, 80, 40])
def test_long_and_odd_names(make_result, width):
    names = ["[bold red]x[/] <b>", "an-unusually-long-descendant-name-" * 3]
    shown = text(make_result(2, names=names), width)
    assert max(len(line) for line in shown.splitlines()) <= width
    if width > 40:
        assert "[bold" in shown, "names are text, not markup"


def test_sixty_descendants(make_result):
    shown = text(make_result(60), 120)
    assert sum(line.strip().startswith("d") for line in shown.splitlines()) >= 60


def test_sentences_tell_the_truth(make_result):
    told = " ".join(sentences(make_result(5, unsettled=(0, 3))))
    assert "5 descendants of a vit supernet on digits" in told
    assert "2:4 costs at most 0.6 points against FP32 (d" in told
    assert "INT8 costs at most 0.3 points against 2:4" in told
    assert "1.60 times the speed of FP32 and was chosen for all 5" in told
    assert "2 of 10 latency measurements are inconclusive." in told
    assert "Nothing was timed on rtx-a6000 and orin-nano-8gb" in told
    assert "10 engines were accepted by the builder of TensorRT-RTX, not run." in told

    one = " ".join(sentences(make_result(1, gpu=False)))
    assert "1 descendant of" in one
    assert "All 2 latency measurements settled." in one
    assert "accepted" not in one

    none = " ".join(sentences(make_result(3, latencies=False)))
    assert "No latency was measured" in none
    assert "settled" not in none

    fp32 = " ".join(sentences(make_result(2, int8=False, sparse=False)))
    assert "INT8" not in fp32
    assert sentences(make_result(0)) == ["The build kept no descendant."]
    assert figures(make_result(0)) == [("0", "descendants", "")]


def test_int8_that_is_not_chosen_is_said(make_result):
    result = make_result(2)
    slower = [
        d.model_copy(update={"bundles": (d.bundles[0].model_copy(update={"chosen": "fp32"}),)})
        for d in result.descendants
    ]
    told = sentences(result.model_copy(update={"descendants": tuple(slower)}))
    assert any("was not chosen" in sentence for sentence in told)
    half = result.model_copy(update={"descendants": (slower[0], result.descendants[1])})
    assert any("was chosen for 1 of 2" in sentence for sentence in sentences(half))
