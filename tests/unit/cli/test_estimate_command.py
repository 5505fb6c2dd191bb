"""``elastic-export estimate`` through the installed entry point."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def network(path: Path) -> None:
    weight = np.ones((64, 64), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["logits"], name="fc")],
        "one",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 64, 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 64, 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))


def test_an_estimate_is_called_one_and_has_its_range(run, tmp_path: Path) -> None:
    network(tmp_path / "net.onnx")
    told = run("estimate", "net.onnx", "--target", "l4", "--precision", "int8")
    assert told.returncode == 0
    assert "estimate, not measured" in told.stdout
    assert "range of the estimate" in told.stdout
    assert "fitted to 66 published figures" in told.stdout
    assert "Unverified figures of the target" in told.stdout
    short = run("estimate", "net.onnx", "--target", "l4", "-q").stdout
    assert short.count("estimate") == 3
    assert " to " in short
    data = json.loads(run("estimate", "net.onnx", "--target", "l4", "--json").stdout)
    assert data["how"] == "estimate"
    assert data["target"].startswith("l4@")


def test_two_sentences_where_it_cannot(run, tmp_path: Path) -> None:
    network(tmp_path / "net.onnx")
    for target, words in (("host-cpu", "no GPU"), ("nano", "may mean two devices")):
        told = run("estimate", "net.onnx", "--target", target)
        assert told.returncode == 1
        assert words in told.stderr
        assert "Traceback" not in told.stderr
