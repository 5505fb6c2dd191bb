"""``inspect FILE.onnx --target NAME`` on files that a board takes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from elastic_export.cli.app import app

ORIN = "orin-nano-8gb@jp5.1"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two GELUs at opset 20, which TensorRT 8.5 does not know, and 10.3 does."""
    sizes = [1, 8]
    graph = helper.make_graph(
        [
            helper.make_node("Gelu", ["x"], ["a"], name="first"),
            helper.make_node("Gelu", ["a"], ["y"], name="second"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
    )
    path = tmp_path / "net.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_refused(file: Path) -> None:
    told = CliRunner().invoke(app, ["inspect", str(file), "--target", ORIN, "--json"])
    assert told.exit_code == 3, told.output
    document = json.loads(told.stdout)
    assert document["taken"] is False
    assert document["target"] == f"{ORIN}:15W"
    assert document["counts"] == {"refused": 3, "slower": 0, "note": 0}
    assert [f["node"] for f in document["findings"]] == ["", "first", "second"]
    assert all(f["remedy"] and f["source"] for f in document["findings"])
    table = CliRunner().invoke(app, ["inspect", str(file), "--target", ORIN])
    assert table.exit_code == 3
    assert "first and 1 more" in table.stdout
    short = CliRunner().invoke(app, ["inspect", str(file), "--target", ORIN, "-q"])
    assert short.stdout == "refused (refused: 3)\n"


def test_taken(file: Path) -> None:
    told = CliRunner().invoke(app, ["inspect", str(file), "--target", "orin-nano-8gb@jp6.2"])
    assert told.exit_code == 0, told.output
    assert "taken" in told.stdout


def test_what_cannot_be_held_against_a_target(file: Path) -> None:
    for arguments, word in (
        ([str(file.parent), "--target", ORIN], "no ONNX file"),
        ([str(file.with_name("none.onnx")), "--target", ORIN], "none.onnx"),
        ([str(file), "--target", "orin-nano-8gb@jp9"], "jp9"),
    ):
        told = CliRunner().invoke(app, ["inspect", *arguments])
        assert told.exit_code == 1, told.output
        assert word in told.output
