"""The main job on real digits: what it writes, and that a second run does nothing."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest import Answer, call, write_recipe

from elastic_export.checkpoints import load_descendant
from elastic_export.engine.bundle import load_bundle
from elastic_export.engine.runners import OrtRunner
from elastic_export.pipeline.estimating import estimate_latency
from elastic_export.report.load import load_result

pytestmark = pytest.mark.slow


class Job:
    """One finished run, shared by the tests that only look at it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.out = home / "out"
        self.recipe = write_recipe(home)
        self.answer = self.again()

    def again(self, *options: str) -> Answer:
        return call("build", self.recipe, "--out", self.out, "--json", *options, home=self.home)

    @property
    def result(self) -> Any:
        return load_result(self.out / "report.json")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    made = Job(tmp_path_factory.mktemp("job"))
    assert made.answer.code == 0, made.answer.err
    return made


def test_everything_promised_is_written(job: Job) -> None:
    names = {path.relative_to(job.out).as_posix() for path in job.out.rglob("*")}
    plots = ("accuracy-macs", "accuracy-latency", "latency-macs")
    wanted = {f"plots/{plot}.{kind}" for plot in plots for kind in ("png", "svg")}
    assert wanted | {"report.html", "report.json", "results.csv"} <= names
    for one in ("d1", "d2"):
        for target in ("host-cpu@ort", "a10@rtx", "orin-nano-8gb@jp6.2-15W"):
            assert f"bundles/{one}/{target}/manifest.json" in names
    assert "http" not in (job.out / "report.html").read_text().split("<body")[0].lower().replace(
        "http-equiv", ""
    ).replace("http://www.w3.org", "")


def test_progress_and_result_do_not_mix(job: Job) -> None:
    assert set(job.answer.json) >= {"out", "result"}
    assert "train" in job.answer.err


def test_the_report_holds_every_figure(job: Job) -> None:
    result = job.result
    assert [one.name for one in result.descendants] == ["d1", "d2"]
    for one in result.descendants:
        assert set(one.accuracy) == {"fp32", "2:4"}
        assert one.cost.algorithmic_macs == one.cost.hardware_macs < one.cost.macs
        host, a10, orin = one.bundles
        assert set(host.latency) == {"fp32", "int8"}
        assert host.chosen in host.latency
        assert host.hardware_macs == one.cost.macs
        assert a10.hardware_macs == one.cost.hardware_macs
        assert not host.estimate
        for away in (a10, orin):
            assert not away.latency
            for estimate in away.estimate.values():
                assert 0 < estimate.low_ms < estimate.ms < estimate.high_ms
            assert set(away.estimate) == {"fp32", "fp16", "int8"}
            # FP32 is the dense yardstick, whatever the device could skip.
            assert away.executed_macs == {
                "fp32": one.cost.macs,
                "fp16": one.cost.hardware_macs,
                "int8": one.cost.hardware_macs,
            }
            told = estimate_latency(job.out / away.folder, away.target)
            assert told["sparse_layers"] > 0
            for precision, estimate in away.estimate.items():
                assert told["estimates"][precision]["ms"] == estimate.ms
        assert set(host.accuracy) == {"fp32", "int8"}
        assert (host.accuracy["int8"].how, a10.accuracy["int8"].how) == ("deployed", "emulated")
        assert set(a10.accuracy) == set(orin.accuracy) == {"fp32", "fp16", "int8"}
    rows = list(csv.DictReader((job.out / "results.csv").open()))
    assert len(rows) == 6
    assert result.descendants[0].cost.macs < result.descendants[1].cost.macs


def test_bundles_are_whole_and_give_the_logits_they_promise(job: Job) -> None:
    for folder in sorted((job.out / "bundles").glob("*/*")):
        bundle = load_bundle(folder)
        from safetensors.numpy import load_file

        sample = load_file(folder / bundle.manifest.sample.file)
        for precision in bundle.manifest.models:
            runner = OrtRunner(bundle.model(precision))
            got = np.concatenate([runner.run(x[None]) for x in sample["input"]])
            wanted = sample[f"logits.{precision}"]
            assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_int8_weights_are_integers_and_still_two_of_four(job: Job) -> None:
    for path in (job.out / "bundles").glob("*/*/model.int8.onnx"):
        patterns = load_bundle(path.parent).manifest.descendant["patterns"]
        tensors = [
            onnx.numpy_helper.to_array(t)
            for t in onnx.load(path).graph.initializer
            if t.data_type == onnx.TensorProto.INT8 and t.name.startswith(tuple(patterns))
        ]
        assert len(tensors) >= 4
        for weight in tensors:
            rows = weight.reshape(weight.shape[0] // 4, 4, -1)  # [K, N]: groups along K
            assert ((rows != 0).sum(1) <= 2).all(), path


def test_engines_are_built_and_called_accepted(job: Job) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    for one in job.result.descendants:
        engines = one.bundles[1].engines
        assert set(engines) == {"fp32", "fp16", "int8"}
        assert {e["status"] for e in engines.values()} == {"accepted"}
        assert {(e["runtime"], e["sm"]) for e in engines.values()} == {("TensorRT-RTX", 86)}
        folder = job.out / one.bundles[1].folder
        assert all((folder / f"model.{p}.engine").stat().st_size > 10_000 for p in engines)


def test_a_board_gets_opset_20_and_a_script(job: Job) -> None:
    folder = job.out / "bundles/d1/orin-nano-8gb@jp6.2-15W"
    for path in folder.glob("*.onnx"):
        opsets = {o.domain: o.version for o in onnx.load(path).opset_import}
        assert set(opsets) == {""}
        assert opsets[""] <= 20
    assert "--sparsity=enable" in (folder / "build_engine_int8.sh").read_text()


def test_a_second_run_takes_everything_from_the_store(job: Job) -> None:
    before = (job.out / "results.csv").read_bytes()
    again = job.again()
    assert again.code == 0, again.err
    assert all(stage["cached"] for stage in again.json["result"]["stages"])
    assert (job.out / "results.csv").read_bytes() == before


def _redone(answer: Answer) -> set[str]:
    assert answer.code == 0, answer.err
    return {s["stage"] for s in answer.json["result"]["stages"] if not s["cached"]}


def test_one_changed_key_redoes_only_what_follows(job: Job) -> None:
    late = _redone(job.again("--set", "quantize.guard.max_drop=3.0"))
    # The record is the same, so everything behind it is found again.
    assert late == {"quantize"}
    sparse = _redone(job.again("--set", "sparsify.finetune.steps=10"))
    assert sparse == {"sparsify", "quantize", "export", "compile", "evaluate", "measure"}


def test_the_plan_tells_what_is_there(job: Job) -> None:
    plan = job.again("--dry-run").json["plan"]
    assert all(row["cached"] for row in plan)
    other = job.again("--dry-run", "--set", "seed=7").json["plan"]
    assert [row["cached"] for row in other if row["stage"] == "train"] == [False]
    assert not any(row["cached"] for row in other)


def test_single_steps_work_on_what_the_run_left(job: Job) -> None:
    store = job.home / "store" / "artifacts"
    supernet = next(store.glob("train-*")) / "supernet.safetensors"
    told = call("inspect", supernet, "--json", home=job.home).json
    assert (told["kind"], told["family"]) == ("supernet", "vit")
    assert told["macs"][0] < told["macs"][1]
    out = job.home / "single"
    answer = call("extract", supernet, "--spec", "min", "--out", out, "--json", home=job.home)
    assert answer.code == 0, answer.err
    one = load_descendant(Path(answer.json["path"]))
    assert one.genes["depth"] == 1
    answer = call(
        "export",
        answer.json["path"],
        "--target",
        "host-cpu",
        "--data",
        "digits",
        "--out",
        out,
        "--json",
        home=job.home,
    )
    assert answer.code == 0, answer.err
    assert set(answer.json["accuracy"]) == {"fp32", "int8"}
    bench = call("bench", answer.json["folder"], "--json", home=job.home)
    assert bench.code == 0, bench.err
    assert {model["precision"] for model in bench.json["models"]} == {"fp32", "int8"}
    report = call("report", job.out / "report.json", "--out", out / "r", "--json", home=job.home)
    assert report.code == 0, report.err
    assert (out / "r" / "report.html").is_file()


def test_a_bundle_is_told_on_one_screen(job: Job) -> None:
    folder = job.out / "bundles/d1/orin-nano-8gb@jp6.2-15W"
    told = call("inspect", folder, home=job.home)
    assert told.code == 0, told.err
    assert len(told.out.splitlines()) < 40
    for part in ("tensorrt 10.3", "2:4 layers", "INT8 layers", "emulated", "0.3761", "Note: No"):
        assert part in told.out
    whole = call("inspect", folder, "--json", home=job.home).json
    assert whole["checks"]["int8"]["patterns"]


def test_zeros_count_where_the_runner_computes_them(job: Job) -> None:
    folder = job.out / "bundles/d1/orin-nano-8gb@jp6.2-15W"
    told = call("bench", folder, "--runner=onnxruntime", "--json", home=job.home)
    descendant = load_bundle(folder).manifest.descendant
    dense = descendant["cost"]["macs"]
    assert descendant["executed_macs"]["int8"] < dense
    assert {model["macs"] for model in told.json["models"]} == {dense}


def test_a_changed_byte_in_a_bundle_is_noticed(job: Job, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "bundle"
    shutil.copytree(job.out / "bundles/d1/host-cpu@ort", folder)
    data = bytearray((folder / "model.int8.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.int8.onnx").write_bytes(data)
    answer = call("bench", folder, "--json", home=job.home)
    assert answer.code == 3
    assert "model.int8.onnx" in json.dumps(answer.json)
