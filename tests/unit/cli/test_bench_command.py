"""``elastic-export bench`` on this machine's CPU, with real networks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save
from torch import nn

from elastic_export.elastic import Descendant
from elastic_export.engine.bundle import load_bundle, write_bundle
from elastic_export.measure.compare import choose_deployed
from elastic_export.measure.protocol import Timing
from elastic_export.pipeline.benching import runners as table
from elastic_export.pipeline.benching.names import RUNNERS, RunnerName
from elastic_export.pipeline.subjects import Subject
from elastic_export.progress import no_progress
from tests.unit.cli.small import call

BundleFor = Callable[[str], Path]
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU here changes what runs")


bench = partial(call, "bench")


def refused(*args: object, code: int = 1) -> str:
    error = bench(*args, code=code)["error"]
    return f"{error['what']} {error['fix']}"


def with_wrong_sample(bundle: Path, folder: Path, share: float) -> Path:
    """Copy a bundle; its expected FP32 logits are off by a share of the largest."""
    loaded = load_bundle(bundle)
    tensors = load_file(bundle / "sample.safetensors")
    expected = tensors["logits.fp32"]
    expected[0, 0] += share * np.abs(expected).max()
    files: dict[str, Path | bytes] = {
        name: bundle / name for name in loaded.manifest.files if name != "README.md"
    }
    files["sample.safetensors"] = save(tensors)
    fields = loaded.manifest.model_dump(mode="json", exclude={"files", "digest"})
    write_bundle(folder, manifest_fields=fields, files=files)
    return folder


def network(path: Path, *, batch: int | str = 1, size: int | str = 8, inputs: int = 1) -> Path:
    nodes = [helper.make_node("GlobalAveragePool", ["x0"], ["pooled"])]
    nodes.append(helper.make_node("Mul", ["pooled", "w"], ["logits"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value(f"x{i}", TensorProto.FLOAT, [batch, 1, size, size]) for i in range(inputs)],
        [value("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(1, np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@needs_no_gpu
def test_a_bundle_an_onnx_file_and_a_descendant_take_turns(
    bundle_for: BundleFor, small: Path, tmp_path: Path
) -> None:
    bundle = bundle_for("host-cpu")
    file = network(tmp_path / "net.onnx", batch="N")
    told = bench(bundle, file, small)
    found = {(one["kind"], one["runner"], one["precision"]) for one in told["models"]}
    assert found == {
        ("bundle", "onnxruntime", "fp32"),
        ("bundle", "onnxruntime", "int8"),
        ("onnx", "onnxruntime", "fp32"),
        ("descendant", "torch", "fp32"),
    }
    # One figure a round each: they were measured together.
    assert len({len(one["latency"]["sample_ms"]) for one in told["models"]}) == 1
    first = told["models"][0]
    assert first["logits"]["ok"]
    assert first["deployed"]
    assert first["runs"]["providers"] == ["CPUExecutionProvider"]
    assert first["top1"]["images"] == 359
    (chosen,) = told["chosen"].values()
    assert chosen["precision"] in ("fp32", "int8")
    assert chosen["runner"] == "onnxruntime"
    assert told["machine"]["cpu"]
    assert any("torch has no INT8 form" in note for note in told["notes"])


@needs_no_gpu
def test_the_table_and_the_short_form(run, bundle_for: BundleFor, small: Path) -> None:
    bundle = bundle_for("a10")
    told = run("bench", str(bundle), str(small))
    assert told.returncode == 0, told.stderr
    for words in ("median ms", "p99 ms", "agree", "emulated", "elsewhere", "another device, a10@"):
        assert words in told.stdout
    assert "take " not in told.stdout
    assert "Preparing and checking" in told.stderr
    short = run("bench", str(bundle_for("host-cpu")), str(small), "-q", "--threads", "2")
    lines = short.stdout.splitlines()
    assert len(lines) == 2
    assert "onnxruntime int8" in lines[0]
    assert "; take " in lines[0]
    assert "torch fp32" in lines[1]
    assert short.stderr == ""


@needs_no_gpu
def test_a_runner_that_cannot_says_why_and_the_rest_goes_on(
    bundle_for: BundleFor, small: Path
) -> None:
    runners = [word for name in RUNNERS for word in ("--runner", name)]
    told = bench(bundle_for("host-cpu"), small, *runners, "--precision", "fp32")
    assert {(one["runner"], one["kind"]) for one in told["models"]} == {
        ("onnxruntime", "bundle"),
        ("torch", "descendant"),
    }
    why = {(one["model"], one["runner"]): one["what"] for one in told["left_out"]}
    assert len(why) == 2 * len(RUNNERS) - 2
    said = " ".join(told["notes"])
    for words in ("torch runs modules", "is a torch module and no ONNX file", "sees no GPU here"):
        assert words in said
    for word in ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx"):
        assert f"with {word} " in said


@needs_no_gpu
@pytest.mark.parametrize(
    ("runner", "words"),
    [
        ("torch-cuda", "torch runs modules"),
        ("onnxruntime-cuda", "no CUDAExecutionProvider"),
        ("onnxruntime-tensorrt", "no TensorrtExecutionProvider"),
    ],
)
def test_nothing_left_is_an_error(bundle_for: BundleFor, runner: str, words: str) -> None:
    assert words in refused(bundle_for("host-cpu"), "--runner", runner)


def test_other_logits_are_exit_code_3_and_never_chosen(
    run, bundle_for: BundleFor, tmp_path: Path
) -> None:
    wrong = with_wrong_sample(bundle_for("host-cpu"), tmp_path / "wrong", 1e-3)
    told = bench(wrong, code=3)
    marks = {one["precision"]: one["marks"] for one in told["models"]}
    assert marks == {"fp32": ["wrong_logits"], "int8": []}
    assert told["chosen"] == {}
    assert any("no precision is chosen" in note for note in told["notes"])
    shown = run("bench", str(wrong))
    assert shown.returncode == 3
    assert "DIFFER" in shown.stdout
    assert "wrong_logits)" in run("bench", str(wrong), "-q").stdout


def test_same_names_are_told_apart(bundle_for: BundleFor, tmp_path: Path) -> None:
    both = [bundle_for("host-cpu"), bundle_for("a10")]
    told = bench(*both, "--runner", "onnxruntime", "--precision", "fp32")
    names = [one["model"] for one in told["models"]]
    assert len(set(names)) == 2
    assert all(target in " ".join(names) for target in ("host-cpu@ort", "a10@rtx"))
    assert any("marked elsewhere" in note for note in told["notes"])
    copy = shutil.copytree(both[0], tmp_path / "copy")
    told = bench(both[0], copy, "--precision", "fp32")
    assert {one["model"] for one in told["models"]} == {str(both[0]), str(copy)}
    assert "given twice" in refused(copy, f"{copy}/")


def test_one_that_fails_while_it_runs_leaves_the_others(run, tmp_path: Path) -> None:
    """It loads, and its Reshape cannot be done."""
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    network(good)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x0", "shape"], ["logits"])],
        "bad",
        [value("x0", TensorProto.FLOAT, [1, 3, 8, 8])],
        [value("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([7, 5]), "shape")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(bad))
    told = bench(good, bad, code=3)
    assert [one["model"] for one in told["models"]] == ["good.onnx"]
    (left,) = told["left_out"]
    assert left["model"] == "bad.onnx"
    assert "and cannot run it" in left["what"]


def test_inputs_that_are_nothing(run, bundle_for: BundleFor, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"x")
    (tmp_path / "junk.onnx").write_bytes(b"\x01junk")
    assert "neither a bundle folder" in refused(tmp_path / "net.pth")
    assert "There is no file" in refused(tmp_path / "gone.onnx")
    assert "cannot be read as an ONNX model" in refused(tmp_path / "junk.onnx")
    assert "no file" in refused(tmp_path / "gone.safetensors")
    assert "no such folder" in refused(tmp_path / "gone")
    assert "Axis 2" in refused(network(tmp_path / "free.onnx", size="H"))
    assert "takes 2 inputs" in refused(network(tmp_path / "two.onnx", inputs=2))
    assert "has no fp16" in refused(bundle_for("host-cpu"), "--precision", "fp16")
    told = run("bench", "x", "--runner", "tensorrt-rxt", PYTHONPROFILEIMPORTTIME="1")
    assert 'Did you mean "tensorrt-rtx"?' in told.stderr
    assert "torch" not in {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    both = run("bench", "x", "--on", "user@board", "--runner", "torch")
    assert "--on names another" in both.stderr


def test_the_table_of_runners_has_every_name() -> None:
    assert set(table._TABLE) == set(get_args(RunnerName)) == set(RUNNERS)


def test_2_4_kernels_are_offered_where_the_weights_hold_2_4() -> None:
    settings = table.Settings(1, False, no_progress)

    def offered(weight: torch.Tensor) -> list[str]:
        layer = nn.Linear(64, 32)
        layer.weight = nn.Parameter(weight)
        one = Descendant("vit", {}, {}, "id", nn.Sequential(layer))
        subject = Subject(Path("d"), "descendant", "d", (1, 64), descendant=one)
        return list(table.makers("torch-cuda", subject, settings))

    sparse = torch.ones(32, 64)
    sparse.reshape(-1, 4)[:, [0, 2]] = 0
    assert offered(sparse) == ["fp32", "autocast", "half", "half 2:4"]
    assert offered(torch.ones(32, 64)) == ["fp32", "autocast", "half"]


def test_the_baseline_is_fp16_on_a_gpu_and_fp32_on_the_cpu() -> None:
    def timing(ms: float) -> Timing:
        return Timing(ms, ms, ms, 0.0, 10, 10, True, (ms,) * 10)

    all_three = {"fp32": timing(3.0), "fp16": timing(1.0), "int8": timing(1.01)}
    assert choose_deployed(all_three, gpu=True)[0] == "fp16"
    assert (
        choose_deployed(all_three, gpu=False)[0] == "fp16"
    )  # faster than the baseline, which is FP32
    faster = {**all_three, "int8": timing(0.5)}
    assert choose_deployed(faster, gpu=True)[0] == "int8"
    assert "speed of fp16" in choose_deployed(faster, gpu=True)[1]
    assert "speed of fp32" in choose_deployed(faster, gpu=False)[1]
    assert choose_deployed({"int8": timing(1.0)}, gpu=True)[0] is None
