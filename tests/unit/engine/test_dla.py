"""The DLA in trtexec's arguments, in a bundle's plan and scripts, and in the Python API."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elastic_export.engine.adapters.options import BuildOptions
from elastic_export.engine.builder import EngineBuilder
from elastic_export.engine.device_plan import Graph, device_plan
from elastic_export.engine.runners import TensorrtRunner
from elastic_export.engine.sidecar import read_header
from elastic_export.engine.trtexec import build_arguments, timing_arguments, trtexec_script
from elastic_export.errors import UserError
from tests.unit.engine.stand_ins import plan_of, stand_in
from tests.unit.engine.test_adapters import save

WITH = ("8.2.1", "8.5.2", "8.6.2", "10.3.0", "10.7.0")
WITHOUT = ("10.8.0", "10.16.1", "11.0", "11.4.1", "11")


def build(version: str, **changes: Any) -> list[str]:
    options = {"strongly_typed": False, "sparse": False, "quantized": False, "workspace": "512"}
    return build_arguments(version, **(options | {"dla": 1} | changes))


@pytest.mark.parametrize("version", WITH)
def test_arguments_of_every_release_with_it(version: str) -> None:
    assert build(version)[:3] == ["--useDLACore=1", "--allowGPUFallback", "--fp16"]
    assert "--int8" not in build(version)
    assert build(version)[2:] == build(version, dla=None)
    timed = timing_arguments(version, 1)
    assert timed[0] == "--useDLACore=1"
    # CUDA graphs and a DLA: github.com/NVIDIA/TensorRT issue 3524.
    assert "--useCudaGraph" in timing_arguments(version)
    assert set(timing_arguments(version)) - set(timed) == {"--useCudaGraph"}


@pytest.mark.parametrize("version", WITHOUT)
def test_releases_without_it_are_refused(version: str) -> None:
    with pytest.raises(UserError, match=r"cannot use a DLA; 10\.7 was the last") as caught:
        build(version)
    assert "GPU" in caught.value.fix
    with pytest.raises(UserError, match="cannot use a DLA"):
        trtexec_script("m.onnx", strongly_typed=False, sparse=False, version=version, dla=0)


@pytest.mark.parametrize("wrong", [{"strongly_typed": True}, {"quantized": True}, {"half": False}])
def test_only_fp16_from_a_weakly_typed_graph(wrong: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="FP16 alone"):
        build("10.3", **wrong)


def test_pinned_layers_are_preferred_in_fp32_as_trtexec_itself_does_on_a_dla() -> None:
    assert "--precisionConstraints=prefer" in build("8.5.2", pins=["norm.fp32"])
    assert "--precisionConstraints=obey" in build("8.5.2", pins=["norm.fp32"], dla=None)


def test_the_plan_holds_the_releases_that_have_it_and_names_the_core_in_every_run() -> None:
    graph = Graph(False, sparse=False, quantized=False, half=True, dla=1)
    releases = json.loads(device_plan({"fp16": graph}))["precisions"]["fp16"]["releases"]
    spans = [(release["first"], release["last"]) for release in releases]
    assert spans == [([8, 2], [8, 2]), ([8, 5], [8, 5]), ([8, 6], [8, 6]), ([10, 3], [10, 7])]
    for release in releases:
        assert release["build"][:3] == ["--useDLACore=1", "--allowGPUFallback", "--fp16"]
        assert release["load"] == ["--useDLACore=1"]
        assert "--useCudaGraph" not in release["time"]
        assert (release["api"]["dla"], release["api"]["strong"]) == (1, False)
    gpu = Graph(False, sparse=False, quantized=False, half=True)
    for release in json.loads(device_plan({"fp16": gpu}))["precisions"]["fp16"]["releases"]:
        assert (release["load"], release["api"]["dla"]) == ([], None)
        assert "--useCudaGraph" in release["time"]


STAND_IN = """\
#!/bin/sh
# Stand-in for trtexec: records its arguments and says what runs where, as a build's log does.
printf '%s\\n' "$@" > "$RECORD"
echo "[I] [TRT] ---------- Layers Running on DLA ----------"
echo "[I] [TRT] [DlaLayer] {ForeignNode[conv1...fc]}"
echo "[I] [TRT] ---------- Layers Running on GPU ----------"
for layer in $ON_GPU; do echo "[I] [TRT] [GpuLayer] SHUFFLE: $layer"; done
for argument in "$@"; do
    case $argument in --saveEngine=*) echo plan > "${argument#--saveEngine=}" ;; esac
done
"""


@pytest.mark.parametrize(("on_gpu", "count"), [("", 0), ("a b", 2)])
def test_the_script_tells_how_many_layers_run_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: str, count: int
) -> None:
    (tmp_path / "bundle").mkdir()
    script = tmp_path / "bundle" / "build_engine_fp16.sh"
    options = {"strongly_typed": False, "sparse": False, "version": "10.3"}
    script.write_text(trtexec_script("m.onnx", dla=1, **options))
    assert "DLA" not in trtexec_script("m.onnx", **options)
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(STAND_IN)
    trtexec.chmod(0o755)
    monkeypatch.setenv("TRTEXEC", str(trtexec))
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("ON_GPU", on_gpu)
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Layers on the DLA: 1; on the GPU: {count}, names in" in done.stdout
    given = (tmp_path / "record").read_text().splitlines()
    assert {"--useDLACore=1", "--allowGPUFallback", "--fp16"} <= set(given)


def test_the_script_of_the_oldest_release_is_read_by_its_python() -> None:
    options = {"strongly_typed": False, "sparse": False, "version": "8.2", "pins": ["a.fp32"]}
    script = trtexec_script("m.onnx", dla=1, **options)
    code = script.split("<<'END'\n")[1].split("\nEND\n")[0]
    ast.parse(code, feature_version=(3, 6))
    assert "DLA" not in trtexec_script("m.onnx", **options)


@pytest.mark.parametrize("version", ["8.2.1.8", "8.5.2.2", "8.6.2.3", "10.3.0"])
def test_an_engine_is_built_for_a_core_and_loaded_on_it(tmp_path: Path, version: str) -> None:
    module = stand_in(version)
    builder = EngineBuilder("tensorrt", module=module, sm=87)
    engine = tmp_path / "net.engine"
    options = BuildOptions("weak", fp16=True, dla=1, pins=("fc2",))
    report = builder.build(save(tmp_path / "net.onnx"), engine, options)
    plan = plan_of(engine)
    assert (plan["device"], plan["dla"], plan["devices"]) == ("DLA", 1, {"fc2": "GPU"})
    assert plan["flags"] == ["FP16", "OBEY_PRECISION_CONSTRAINTS", "GPU_FALLBACK"]
    assert read_header(engine).dla == 1
    assert report.layers == 3  # so it was loaded on its core
    assert builder.read_engine_layers(engine)[0] is not None
    runner = TensorrtRunner(engine, builder=builder, device="cpu")
    assert np.allclose(runner.run(np.ones((1, 4), np.float32)), 2)


@pytest.mark.parametrize("version", ["10.16.1", "11.1.0"])
def test_a_module_without_it_is_refused(tmp_path: Path, version: str) -> None:
    options = BuildOptions("weak", fp16=True, dla=0)
    builder = EngineBuilder("tensorrt", module=stand_in(version), sm=87)
    with pytest.raises(UserError, match=r"weakly|strongly typed networks only|cannot use a DLA"):
        builder.build(save(tmp_path / "net.onnx"), tmp_path / "e", options)


@pytest.mark.parametrize(
    "wrong", [{"typing": "strong"}, {"typing": "weak", "int8": True}, {"typing": "weak"}]
)
def test_options_that_a_dla_does_not_take(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="FP16 alone"):
        BuildOptions(dla=0, **wrong)
