"""``elastic-export compile`` with the real builder of TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from elastic_export.cli.app import app
from elastic_export.cli.progress import LineProgress
from elastic_export.engine import tensorrt_rtx
from elastic_export.engine.builder import device_sm
from elastic_export.engine.bundle import load_bundle
from elastic_export.engine.sidecar import read_header
from tests.unit.cli.small import call

pytestmark = pytest.mark.skipif(
    tensorrt_rtx.available() is None, reason="tensorrt-rtx is not installed (extra rtx)"
)
SMS = (75, 80, 86, 89, 120)
BundleFor = Callable[[str], Path]


compiled = partial(call, "compile")


def refused(*args: object, code: int = 1) -> str:
    error = compiled(*args, code=code)["error"]
    return f"{error['what']} {error['fix']}"


@pytest.fixture
def bundle(bundle_for: BundleFor, tmp_path: Path) -> Path:
    """A bundle for an A10 (sm_86), with the engines that export built."""
    return shutil.copytree(bundle_for("a10"), tmp_path / "a10")


@pytest.fixture
def file(bundle_for: BundleFor, tmp_path: Path) -> Path:
    """The INT8 model for strongly typed networks, by itself."""
    return shutil.copy(bundle_for("a10") / "model.int8.onnx", tmp_path / "net.onnx")


def test_a_file_for_several_gpus(run, file: Path) -> None:
    args = [word for sm in SMS for word in ("--sm", str(sm))]
    told = run("compile", "net.onnx", "--runtime", "tensorrt-rtx", *args)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("accepted") == len(SMS)
    assert f"TensorRT-RTX {tensorrt_rtx.available()}" in told.stdout
    assert "build net-" in told.stderr
    engines = sorted(file.parent.glob("*.engine"))
    assert {read_header(engine).sm for engine in engines} == set(SMS)
    short = run("compile", "net.onnx", "--runtime", "tensorrt-rtx", *args, "-q")
    assert sorted(map(Path, short.stdout.splitlines())) == engines
    assert not list(file.parent.glob("*.cache"))


@pytest.mark.skipif(device_sm() is not None, reason="the GPU here may load the engine")
def test_nothing_is_claimed_of_kernels_that_were_not_reported(file: Path) -> None:
    told = compiled(file, "--runtime", "tensorrt-rtx", "--sm", 86)
    (engine,) = told["engines"]
    assert (engine["status"], engine["layers"]) == ("accepted", None)
    assert not {"int8_layers", "fused_attention", "picked_sparse", "eligible_sparse"} & set(engine)
    table = CliRunner().invoke(app, ["compile", str(file), "--sm", "86"]).stdout
    row = next(line for line in table.splitlines() if "net-" in line)
    assert row.split()[5:9] == ["-", "-", "-", "-"]
    assert "device chooses its kernels" in table
    assert "no GPU is seen here" in table


def test_an_engine_is_built_once(file: Path, tmp_path: Path) -> None:
    def made(*args: object) -> tuple[Path, bool, int]:
        told = compiled(file, "--sm", 86, "--out", tmp_path / "engines", *args)
        (engine,) = told["engines"]
        path = Path(engine["file"])
        assert Path(engine["sidecar"]).is_file()
        return path, engine["reused"], path.stat().st_mtime_ns

    first = made()
    assert first[1] is False
    assert made() == (first[0], True, first[2])
    for other in (["--no-sparse"], ["--level", 1], ["--workspace", 64]):
        path, reused, _ = made(*other)
        assert (path != first[0], reused) == (True, False)
    again = made("--fresh")
    assert (again[0], again[1]) == (first[0], False)
    assert again[2] > first[2]
    first[0].write_bytes(b"damaged")
    assert made()[1] is False
    read_header(first[0])


def test_a_bundle_keeps_its_own_engines_and_stays_whole(bundle: Path) -> None:
    own = compiled(bundle)
    assert own["runtime"] == "TensorRT-RTX"
    assert [Path(e["file"]).name for e in own["engines"]] == [
        f"model.{p}.engine" for p in ("fp16", "fp32", "int8")
    ]
    assert all(engine["reused"] and engine["sm"] == 86 for engine in own["engines"])
    other = compiled(bundle, "--sm", 89, "--precision", "fp16")
    assert other["out"] == str(bundle.with_name("a10.engine"))
    assert [(e["sm"], e["reused"]) for e in other["engines"]] == [(89, False)]
    inside = compiled(bundle / "model.fp16.onnx", "--sm", 80)
    assert Path(inside["engines"][0]["file"]).parent == bundle.with_name("a10.engine")
    load_bundle(bundle)


def test_what_cannot_be_built_is_said_before_anything_is(
    bundle: Path, bundle_for: BundleFor, small: Path, file: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    rtx = ("--runtime", "tensorrt-rtx")
    assert "not for sm_87" in refused(file, *rtx, "--sm", 86, "--sm", 87)
    assert "strongly typed networks only" in refused(file, *rtx, "--sm", 86, "--fp16")
    assert "no timing cache" in refused(file, *rtx, "--sm", 86, "--timing-cache", tmp_path / "t")
    assert "no hardware compat" in refused(file, *rtx, "--sm", 86, "--hardware", "ampere-plus")
    assert "one precision" in refused(file, *rtx, "--sm", 86, "--precision", "int8")
    assert 'no "int4" model' in refused(bundle, "--precision", "int4")
    assert "says itself how" in refused(bundle, "--fp16")
    assert "part of the bundle" in refused(bundle, "--sm", 89, "--out", bundle / "engines")
    assert "is a descendant" in refused(small)
    assert "for ONNX Runtime" in refused(bundle_for("host-cpu"))
    weak = refused(bundle_for("orin-nano-8gb@jp5.1"), *rtx, "--sm", 86)
    assert "was not made for TensorRT-RTX" in weak
    assert "no such folder" in refused(tmp_path / "gone")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_graph_the_parser_refuses_fails_a_check(bundle_for: BundleFor, tmp_path: Path) -> None:
    """ONNX Runtime's INT8 has zero points, which TensorRT does not take."""
    path = shutil.copy(bundle_for("host-cpu") / "model.int8.onnx", tmp_path / "cpu.onnx")
    told = refused(path, "--runtime", "tensorrt-rtx", "--sm", 86, code=3)
    assert "refuses cpu.onnx: node" in told
    assert [each.name for each in tmp_path.iterdir()] == ["cpu.onnx"]


def test_ctrl_c_leaves_nothing_half_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = LineProgress.start

    def press(self: LineProgress, label: str, total: int) -> None:
        start(self, label, total)
        if label.startswith("build ") and "sm_89" in label:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(LineProgress, "start", press)
    told = compiled(
        file, "--runtime", "tensorrt-rtx", "--sm", 86, "--sm", 89, "--out", tmp_path / "e", code=130
    )
    assert told["error"]["kind"] == "interrupted"
    left = sorted(each.name for each in (tmp_path / "e").iterdir())
    assert [name.partition(".rtx")[2].partition(".sm")[2] for name in left] == [
        "86.engine",
        "86.engine.json",
    ]


@pytest.mark.parametrize("wrong", [["--level", "6"], ["--workspace", "0"], ["--runtime", "trt"]])
def test_wrong_usage(run, wrong: list[str]) -> None:
    assert run("compile", "net.onnx", *wrong).returncode == 2
