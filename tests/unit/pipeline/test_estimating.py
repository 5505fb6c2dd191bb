"""Estimates of real files and bundles, and boards whose results come as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from elastic_export.artifacts.digest import sha256_file
from elastic_export.config.transform import Transform
from elastic_export.engine.bundle import load_bundle, write_bundle
from elastic_export.errors import UserError
from elastic_export.pipeline.estimating import estimate_latency, fit_board, learn_from

TARGET = "orin-nano-8gb@jp6.2:15W"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELASTIC_EXPORT_TARGETS", str(tmp_path / "targets"))


def network(path: Path, width: int) -> Path:
    """Two real products of 64 rows with a ReLU between."""
    chance = np.random.default_rng(0)
    first = chance.normal(size=(64, width)).astype(np.float32)
    second = chance.normal(size=(width, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "a"], ["one"], name="fc1"),
            helper.make_node("Relu", ["one"], ["two"]),
            helper.make_node("MatMul", ["two", "b"], ["logits"], name="fc2"),
        ],
        "two",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 64, 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 64, 10])],
        [numpy_helper.from_array(first, "a"), numpy_helper.from_array(second, "b")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def bundle(folder: Path, width: int) -> Path:
    plain = network(folder.parent / f"{folder.name}.onnx", width)
    write_bundle(
        folder,
        manifest_fields={
            "name": folder.name,
            "target": TARGET,
            "runtime": {"name": "tensorrt", "version": "10.3"},
            "models": {"fp32": "model.fp32.onnx"},
            "descendant": {},
            "transform": Transform(size=4, channels=3, mean=(0, 0, 0), std=(1, 1, 1)),
            "versions": {},
        },
        files={"model.fp32.onnx": plain},
    )
    return folder


def result(path: Path, folders: list[Path], ms: float, **board: str | None) -> Path:
    models: dict[str, Any] = {}
    for folder in folders:
        model = load_bundle(folder).model("fp32")
        figures = {"median": ms, "p90": ms, "p99": ms, "cov": 0.0, "n": 1000}
        models[f"{folder.name}/fp32"] = {
            **{"file": model.name, "sha256": sha256_file(model), "error": None},
            **{"latency_ms": figures, "gpu_compute_ms": figures, "settled": True},
        }
    known = {"power_mode": "15W", "jetpack": "6.2", "l4t": "36.4.3", "part": "p3767-0003"}
    told = {**known, **board}
    path.write_text(json.dumps({"schema_version": 1, "board": told, "models": models}))
    return path


def test_a_file_is_estimated_in_all_precisions_and_named_an_estimate(tmp_path: Path) -> None:
    found = estimate_latency(network(tmp_path / "net.onnx", 256), TARGET)
    assert found["how"] == "estimate"
    assert found["macs"] == 64 * 64 * 256 + 64 * 256 * 10
    assert set(found["estimates"]) == {"fp32", "fp16", "int8"}
    for one in found["estimates"].values():
        assert one["how"] == "estimate"
        assert one["low_ms"] < one["ms"] < one["high_ms"]
        assert [layer["name"] for layer in one["layers"]] == ["fc1", "fc2"]
    assert "published figures" in found["basis"]
    assert found["notes"] == ["Unverified figures of the target: l2_mb."]
    assert json.dumps(found)


def test_a_board_that_was_measured_is_used_afterwards(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "net", 256)
    before = estimate_latency(folder, TARGET, "fp32")["estimates"]["fp32"]["ms"]
    fitted = fit_board([result(tmp_path / "r.json", [folder], 3 * before)], [folder], TARGET)
    assert fitted.models == ("net/fp32",)
    after = estimate_latency(folder, TARGET, "fp32")
    assert after["estimates"]["fp32"]["ms"] == pytest.approx(3 * before)
    assert after["basis"] == f"fitted to 1 measurement of {fitted.day}"
    other = estimate_latency(folder, "orin-nano-8gb@jp6.2:7W", "fp32")
    assert "published figures" in other["basis"]


def test_what_bench_printed_is_read_too(tmp_path: Path) -> None:
    folders = [bundle(tmp_path / f"net{width}", width) for width in (64, 512)]
    one = json.loads(result(tmp_path / "r.json", folders, 0.5).read_text())
    both = tmp_path / "both.json"
    both.write_text(json.dumps({"boards": {"a": {"result": one}, "b": {"error": {}}}}))
    assert fit_board([both], folders, TARGET).models == ("net64/fp32", "net512/fp32")


def test_a_visit_teaches_the_estimate_by_itself(tmp_path: Path) -> None:
    folders = [bundle(tmp_path / f"net{width}", width) for width in (64, 512)]
    loaded = [load_bundle(folder) for folder in folders]
    told = json.loads(result(tmp_path / "r.json", folders, 0.5).read_text())
    (note,) = learn_from(told, loaded)
    assert note.startswith(f"Estimates for {TARGET} are now fitted to 2 measurements of ")
    assert "fitted to 2" in estimate_latency(folders[0], TARGET, "fp32")["basis"]
    # The second of two visits adds to the first.
    third = bundle(tmp_path / "net256", 256)
    more = json.loads(result(tmp_path / "s.json", [third], 0.4).read_text())
    assert "fitted to 3 measurements" in learn_from(more, [load_bundle(third)])[0]


@pytest.mark.parametrize(
    ("board", "model"),
    [
        ({"jetpack": "5.1"}, {}),
        ({"jetpack": None}, {}),  # the board does not say what it is
        ({"power_mode": "25W"}, {}),
        ({"power_mode": None}, {}),
        ({"part": "p3701-0005"}, {}),  # an AGX Orin
        ({"part": None}, {}),
        ({}, {"flags": ["wrong_logits"]}),
        ({}, {"runtime": "onnxruntime"}),
        ({}, {"settled": False}),
        ({}, {"flags": ["throttled"]}),
        ({}, {"sha256": "another file"}),
    ],
)
def test_what_says_nothing_of_the_target_teaches_nothing(
    tmp_path: Path, board: dict[str, Any], model: dict[str, Any]
) -> None:
    folder = bundle(tmp_path / "net", 64)
    told = json.loads(result(tmp_path / "r.json", [folder], 0.5, **board).read_text())
    told["models"]["net/fp32"].update(model)
    assert learn_from(told, [load_bundle(folder)]) == []
    assert not (tmp_path / "targets").exists()


def test_foreign_results_are_refused(tmp_path: Path) -> None:
    folder, other = bundle(tmp_path / "net", 64), bundle(tmp_path / "other", 32)
    with pytest.raises(UserError, match="with power mode 25W"):
        fit_board([result(tmp_path / "a.json", [folder], 1, power_mode="25W")], [folder], TARGET)
    with pytest.raises(UserError, match="does not tell that its board is"):
        fit_board([result(tmp_path / "g.json", [folder], 1, jetpack=None)], [folder], TARGET)
    with pytest.raises(UserError, match=r"with JetPack 5\.1"):
        fit_board([result(tmp_path / "b.json", [folder], 1, jetpack="5.1")], [folder], TARGET)
    with pytest.raises(UserError, match="No model of"):
        fit_board([result(tmp_path / "c.json", [other], 1)], [folder], TARGET)
    spoilt = json.loads(result(tmp_path / "e.json", [folder], 1).read_text())
    spoilt["models"]["net/fp32"]["flags"] = ["throttled"]
    (tmp_path / "e.json").write_text(json.dumps(spoilt))
    with pytest.raises(UserError, match="No model of"):
        fit_board([tmp_path / "e.json"], [folder], TARGET)
    spoilt["models"]["net/fp32"]["runtime"] = "onnxruntime"
    (tmp_path / "e.json").write_text(json.dumps(spoilt))
    with pytest.raises(UserError, match="with ONNX Runtime"):
        fit_board([tmp_path / "e.json"], [folder], TARGET)
    (tmp_path / "d.json").write_text('{"models": 3}')
    with pytest.raises(UserError, match="no result of a measurement"):
        fit_board([tmp_path / "d.json"], [folder], TARGET)
    assert not (tmp_path / "targets").exists()


def test_a_precision_that_is_not_there_is_refused(tmp_path: Path) -> None:
    net = network(tmp_path / "net.onnx", 64)
    with pytest.raises(UserError, match="does not run int8"):
        estimate_latency(net, "jetson-nano", "int8")
    assert set(estimate_latency(net, "jetson-nano")["estimates"]) == {"fp32", "fp16"}
    with pytest.raises(UserError, match="There is no file"):
        estimate_latency(tmp_path / "absent.onnx", TARGET)
