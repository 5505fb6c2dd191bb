"""The written report: whole files, a page that stands alone, equal bytes for equal results."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import matplotlib
import pytest
from PIL import Image

from elastic_export.artifacts import files
from elastic_export.config.result import BuildResult
from elastic_export.errors import CheckFailed, UserError
from elastic_export.measure.protocol import MIN_SAMPLES, NEAR_SHARE, TOLERANCE
from elastic_export.report.details import describe_targets
from elastic_export.report.load import load_result
from elastic_export.report.write import write_report

PLOTS = ("accuracy-macs", "accuracy-latency", "latency-macs")
ODD = '<script>alert("x")</script>&amp; $x_1$ \'é中'


class Page(HTMLParser):
    """Collect what a browser would: elements, identifiers, references, text."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not (self.open and self.open[-1] == "style"):
            self.text += data


def page(written) -> Page:
    return Page(written["html"].read_text(encoding="utf-8"))


def test_everything_is_written_and_reads_back(make_result, tmp_path):
    result = make_result(5, unsettled=(1,))
    written = write_report(result, tmp_path / "new" / "out")
    expected = {"json", "csv", "latencies", "html"} | {
        f"{p}.{kind}" for p in PLOTS for kind in ("png", "svg")
    }
    assert set(written) == expected
    assert load_result(written["json"]) == result
    assert load_result(tmp_path / "new" / "out") == result
    for name in PLOTS:
        with Image.open(written[f"{name}.png"]) as image:
            image.load()
            assert image.width > 1000
        root = ElementTree.parse(written[f"{name}.svg"]).getroot()
        texts = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"d1", "d5", "FP32", "INT8", "Pareto front"} <= texts
    assert not list((tmp_path / "new").rglob(".*"))


def test_page_stands_alone(make_result, tmp_path):
    result = make_result(4)
    written = write_report(result, tmp_path)
    found = page(written)
    assert found.open == []
    assert all(reference.startswith("#") for reference in found.references), found.references
    assert {"link", "img", "iframe", "object", "embed"}.isdisjoint(found.tags)
    assert "@import" not in written["html"].read_text()
    local = {reference[1:] for reference in found.references}
    assert local <= set(found.ids)
    assert len(found.ids) == len(set(found.ids)), "plots share identifiers"
    assert found.tags.count("svg") == 3
    assert "default-src 'none'" in written["html"].read_text()


def test_page_shows_sections_and_figures(make_result, tmp_path):
    result = make_result(3, unsettled=(0,))
    shown = page(write_report(result, tmp_path)).text
    for word in (
        "Descendants on host-cpu",
        "Targets",
        "rtx-a6000",
        "orin-nano-8gb",
        "How it was found",
        "Imaginary Xeon 9000",
        "onnxruntime",
        "family: vit",
        "QLinearMatMul",
        "accepted",
        "1.7.1.116",
        "run build_engine.sh there",
        "inconclusive",
        "emulated",
        "from the store",
        "1 min 1 s",
    ):
        assert word in shown, word
    assert shown.count("the engine was accepted by the builder, not run") == 1


def test_page_states_the_rule_that_is_applied(make_result, tmp_path):
    shown = page(write_report(make_result(1), tmp_path)).text
    assert f"at least {MIN_SAMPLES} samples" in shown
    assert f"within {100 * TOLERANCE:.0f} %" in shown
    assert f"at least {100 * NEAR_SHARE:.0f} % of the samples" in shown


def test_embedded_data_is_the_result(make_result, tmp_path):
    result = make_result(2, names=[ODD, "</script><!--"])
    found = page(write_report(result, tmp_path))
    assert BuildResult.model_validate_json(found.scripts[0]) == result
    assert len(found.scripts) == 2


def test_odd_names_are_text_everywhere(make_result, tmp_path):
    result = make_result(2, names=[ODD, 'id="a" url(#b) #ffffff'])
    written = write_report(result, tmp_path)
    found = page(written)
    assert found.tags.count("script") == 2
    assert ODD in found.text
    assert found.text.count('id="a" url(#b) #ffffff') >= 4
    svg = written["accuracy-macs.svg"]
    texts = {"".join(node.itertext()) for node in ElementTree.parse(svg).getroot().iter()}
    assert ODD in texts
    assert load_result(written["json"]) == result


def test_equal_results_give_equal_bytes_whatever_the_users_style(make_result, tmp_path):
    first = write_report(make_result(3), tmp_path / "a")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": "x"}):
        second = write_report(make_result(3), tmp_path / "b")
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name
    for name in PLOTS:
        text = (tmp_path / "a" / "plots" / f"{name}.svg").read_text()
        assert "dc:date" not in text
        assert matplotlib.__version__ not in text


@pytest.mark.parametrize(
    "options",
    [
        {"count": 1},
        {"count": 1, "int8": False, "sparse": False},
        {"count": 3, "latencies": False},
        {"count": 2, "bundles": False},
        {"count": 0},
    ],
)
def test_gaps(make_result, tmp_path, options):
    result = make_result(**options)
    written = write_report(result, tmp_path)
    assert load_result(written["json"]) == result
    assert page(written).open == []
    assert ("accuracy-latency.png" in written) is any(
        bundle.latency for d in result.descendants for bundle in d.bundles
    )


def test_sixty_descendants_stay_readable(make_result, tmp_path):
    written = write_report(make_result(60, gpu=False), tmp_path)
    root = ElementTree.parse(written["accuracy-latency.svg"]).getroot()
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    labels = [text for text in texts if re.fullmatch(r"d\d+", text)]
    assert 2 <= len(labels) <= 12
    assert {"d1", "d60"} <= set(labels)
    assert page(written).text.count("settled") >= 60


def test_a_plot_that_has_gone_is_removed(make_result, tmp_path):
    write_report(make_result(2), tmp_path)
    (tmp_path / "plots" / "mine.txt").write_text("kept")
    write_report(make_result(2, latencies=False), tmp_path)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "accuracy-macs.png",
        "accuracy-macs.svg",
        "mine.txt",
    }


def test_full_disk_leaves_the_old_report(make_result, tmp_path, monkeypatch):
    old = make_result(2)
    write_report(old, tmp_path)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="full"):
        write_report(make_result(3), tmp_path)
    monkeypatch.undo()
    assert load_result(tmp_path) == old
    assert not list(tmp_path.rglob(".*"))


def test_a_figure_that_is_no_number_is_refused(make_result, tmp_path):
    result = make_result(1)
    descendant = result.descendants[0]
    wrong = descendant.model_copy(
        update={
            "accuracy": {
                "fp32": descendant.accuracy["fp32"].model_copy(update={"top1": float("nan")})
            }
        }
    )
    with pytest.raises(CheckFailed, match=r"descendants\.0\.accuracy\.fp32\.top1"):
        write_report(result.model_copy(update={"descendants": (wrong,)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        (lambda d: d | {"schema_version": 2}, "schema_version 2", "pip install --upgrade"),
        (lambda d: d | {"schema_version": 0}, "schema_version", "build again"),
        (lambda d: d | {"descendents": []}, '"descendents" is unknown', '"descendants"'),
        (lambda d: {k: v for k, v in d.items() if k != "machine"}, '"machine" is missing', "again"),
        (lambda d: d | {"wall_seconds": "long"}, '"wall_seconds" should be a number', "again"),
        (lambda d: [d], "not the result of a build", "build again"),
        (lambda d: {"a": 1}, "not the result of a build", "build again"),
    ],
)
def test_a_file_that_is_no_result(make_result, tmp_path, change, what, fix):
    data = make_result(1).model_dump(mode="json")
    path = tmp_path / "report.json"
    path.write_text(json.dumps(change(data)))
    with pytest.raises(UserError) as caught:
        load_result(path)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert "report.json" in caught.value.what


def test_missing_truncated_and_unreadable_files(make_result, tmp_path):
    with pytest.raises(UserError, match="There is no result file"):
        load_result(tmp_path)
    path = write_report(make_result(1), tmp_path)["json"]
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"not whole JSON.* line"):
            load_result(path)
    path.write_bytes(b"\xff\xfe" + whole)
    with pytest.raises(UserError, match="cannot be read"):
        load_result(path)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError):
        load_result(path)


def test_checks_are_a_row_for_each_file(make_result):
    host = describe_targets(make_result(2))[0]
    table = [dict(zip(host.checks.header, row, strict=True)) for row in host.checks.rows]
    assert [row["Precision"] for row in table] == ["fp32", "int8"] * 2
    int8 = next(row for row in table if row["Precision"] == "int8")
    assert int8["Error against torch"] == "0.0022"
    assert int8["2:4 layers"] == "16"
    assert int8["INT8 layers"] == "15"
    assert int8["Fused INT8 operators"] == "16 QLinearMatMul, 1 MatMulIntegerToFloat"
    assert int8["Kept in float"] == "patch_embed.proj"
    assert int8["Most clipped"] == "0.0057 %, blocks.0.mlp.fc1"
    assert int8["Same top-1"] == "100 %"
    # No file has any, so there is no column of dashes.
    assert "Findings of the lint" not in host.checks.header
