"""Builds with stand-ins of each TensorRT release, and what lies beside an engine.

TensorRT itself needs a GPU; ``tests/gpu`` builds with the real one where there is one.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from elastic_export.engine.adapters.releases import RELEASES, Release
from elastic_export.engine.builder import BuildOptions, EngineBuilder
from elastic_export.engine.layers import parse_layers, parse_sparsity, summarize
from elastic_export.engine.runners import TensorrtRunner
from elastic_export.engine.sidecar import check_engine_fits, read_header, sidecar_of
from elastic_export.errors import CheckFailed, UserError
from elastic_export.measure.board import layers as board
from tests.unit.engine.stand_ins import FAILS, REFUSED, VERSIONS, inspected, plan_of, stand_in

WEAK = [version for version in VERSIONS if not version.startswith("11")]
STRONG = [version for version in VERSIONS if version.startswith("1")]
EXPLICIT_BATCH, STRONGLY_TYPED = 1 << 0, 1 << 1


def builder_of(version: str, sm: int = 86) -> EngineBuilder:
    return EngineBuilder("tensorrt", module=stand_in(version), sm=sm)


def save(path: Path, *, middle: str = "Relu", name: str = "act", quantized: bool = False) -> Path:
    """fc1 (MatMul) - the middle node - fc2 (MatMul), perhaps with Q/DQ in front."""
    weight = np.ones((4, 4), np.float32)
    nodes = [
        helper.make_node("MatMul", ["q" if quantized else "input", "w"], ["a"], name="fc1"),
        helper.make_node(middle, ["a"], ["b"], name=name),
        helper.make_node("MatMul", ["b", "w"], ["logits"], name="fc2"),
    ]
    if quantized:
        nodes.insert(0, helper.make_node("DequantizeLinear", ["c", "s"], ["q"], name="dq"))
        nodes.insert(0, helper.make_node("QuantizeLinear", ["input", "s"], ["c"], name="q"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("input", 1, [1, 4])],
        [value("logits", 1, [1, 4])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.asarray(1, np.float32), "s"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def default(version: str) -> BuildOptions:
    return BuildOptions(typing="strong") if version in STRONG else BuildOptions("weak", fp16=True)


@pytest.mark.parametrize("version", WEAK)
def test_weak_typing(tmp_path: Path, version: str) -> None:
    path = save(tmp_path / "net.onnx", quantized=True)
    options = BuildOptions("weak", int8=True, sparse=True, workspace_mib=64)
    report = builder_of(version).build(path, tmp_path / "net.engine", options)
    plan = plan_of(tmp_path / "net.engine")
    assert plan["creation"] == (EXPLICIT_BATCH if version.startswith("8") else 0)
    assert plan["flags"] == ["FP16", "INT8", "SPARSE_WEIGHTS"] == list(report.flags)
    assert plan["verbosity"] == "DETAILED"
    if version.startswith("8.2"):
        assert plan["workspace"] == 64 << 20
    else:
        assert plan["pools"] == {"WORKSPACE": 64 << 20}
        assert plan["workspace"] is None
    assert (report.eligible_sparse, report.picked_sparse) == (("fc1", "fc2"), ("fc1",))


@pytest.mark.parametrize("version", STRONG)
def test_strong_typing(tmp_path: Path, version: str) -> None:
    options = BuildOptions("strong", sparse=True, level=4, hardware="ampere_plus")
    report = builder_of(version).build(save(tmp_path / "n.onnx"), tmp_path / "n.engine", options)
    plan = plan_of(tmp_path / "n.engine")
    assert plan["creation"] == (0 if version.startswith("11") else STRONGLY_TYPED)
    assert plan["flags"] == ["SPARSE_WEIGHTS"]
    assert (plan["level"], plan["hardware"]) == (4, "AMPERE_PLUS")
    assert (report.status, report.sm, report.runtime) == ("built", 86, "TensorRT")
    assert (report.layers, report.int8_layers, report.fused_attention) == (3, 2, 1)
    assert "sparse" not in json.dumps(report.to_json()["note"])


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ("8.6.2.3", BuildOptions("strong"), "weakly typed networks only"),
        ("11.1.0", BuildOptions("weak"), "strongly typed networks only"),
        ("8.5.2.2", BuildOptions("weak", level=3), "no optimisation levels"),
        ("8.2.1.8", BuildOptions("weak", hardware="ampere_plus"), "no hardware compat"),
        ("8.6.2.3", BuildOptions("weak", hardware="same_compute_capability"), "no hardware"),
        ("10.3.0", BuildOptions(hardware="same_compute_capability"), "no hardware .* yet"),
        ("10.3.0", BuildOptions(sm=80), "this machine, sm_86, not for sm_80"),
        ("10.3.0", BuildOptions("weak", int8=True), "holds no Q/DQ, and INT8 was asked for"),
    ],
)
def test_what_a_release_cannot_do_is_refused(
    tmp_path: Path, version: str, options: BuildOptions, message: str
) -> None:
    path = save(tmp_path / "net.onnx")
    with pytest.raises(UserError, match=message):
        builder_of(version).build(path, tmp_path / "net.engine", options)
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


def test_q_dq_without_int8_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", quantized=True)
    with pytest.raises(UserError, match="holds Q/DQ, and INT8 was not asked for"):
        builder_of("8.6.2.3").build(path, tmp_path / "e", BuildOptions("weak", fp16=True))


@pytest.mark.parametrize(
    "wrong", [{"fp16": True}, {"int8": True}, {"pins": ("a",)}, {"level": 6}, {"workspace_mib": 0}]
)
def test_options_that_contradict_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"typed|levels|positive"):
        BuildOptions(**wrong)


@pytest.mark.parametrize("version", ["7.2.3", "8.4.1", "9.0.1", "12.0", "odd"])
def test_releases_that_were_not_compared_are_refused(version: str) -> None:
    with pytest.raises(UserError, match=r"not known.*8\.2, 8\.5, 8\.6, 10\.0 to 10\.99"):
        Release.of("tensorrt", version)
    assert all(release.first <= release.last for release in RELEASES)


@pytest.mark.parametrize("version", WEAK)
def test_pinned_nodes(tmp_path: Path, version: str) -> None:
    path = save(tmp_path / "net.onnx", name="norm.fp32")
    options = BuildOptions("weak", fp16=True, pins=("norm.fp32",))
    builder_of(version).build(path, tmp_path / "net.engine", options)
    plan = plan_of(tmp_path / "net.engine")
    assert plan["pinned"] == ["norm.fp32"]
    assert plan["flags"] == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    with pytest.raises(CheckFailed, match=r'1 nodes .* "gone\.fp32"'):
        builder_of(version).build(path, tmp_path / "x", BuildOptions("weak", pins=("gone.fp32",)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_refused_node_is_named(tmp_path: Path, version: str) -> None:
    path = save(tmp_path / "net.onnx", middle=REFUSED, name="odd")
    with pytest.raises(CheckFailed, match=rf'{version}.* node "odd" \(FooBar\): Plugin not found'):
        builder_of(version).build(path, tmp_path / "net.engine", default(version))
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_node_the_builder_fails_at_is_named(tmp_path: Path, version: str) -> None:
    path = save(tmp_path / "net.onnx", name=FAILS)
    with pytest.raises(CheckFailed, match=rf'node "{FAILS}" \(Relu\): 10: Could not find any'):
        builder_of(version).build(path, tmp_path / "net.engine", default(version))
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


class Told:
    """A progress that keeps what it was told, and may interrupt."""

    def __init__(self, stop: BaseException | None = None) -> None:
        self.told: list[str] = []
        self.stop = stop

    def start(self, label: str, total: int) -> None:
        self.told.append(f"{label}: {total}")

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.told.append("step")
        if self.stop is not None:
            raise self.stop

    def finish(self) -> None:
        self.told.append("end")


@pytest.mark.parametrize("version", VERSIONS)
def test_progress_where_the_release_has_a_monitor(tmp_path: Path, version: str) -> None:
    told = Told()
    path = save(tmp_path / "n.onnx")
    builder_of(version).build(path, tmp_path / "n.engine", default(version), told)
    has = version in ("10.16.1", "11.1.0")
    assert told.told == (["build n.engine for sm_86: 2", "step", "step", "end"] if has else [])


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("the screen is gone")])
def test_what_goes_wrong_in_the_monitor_stops_the_build(
    tmp_path: Path, stop: BaseException
) -> None:
    path = save(tmp_path / "n.onnx")
    with pytest.raises(type(stop)):
        builder_of("11.1.0").build(path, tmp_path / "n.engine", BuildOptions(), Told(stop))
    assert [each.name for each in tmp_path.iterdir()] == ["n.onnx"]


@pytest.fixture
def listening() -> Iterator[None]:
    """A background shell has its children ignore SIGINT; a terminal's do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_without_a_monitor_ends_the_build_when_the_builder_returns(tmp_path: Path) -> None:
    builder, path = builder_of("8.2.1.8"), save(tmp_path / "n.onnx")
    make = builder.trt.Builder

    def interrupted(log: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return make(log)

    builder.trt.Builder = interrupted
    with pytest.raises(KeyboardInterrupt):
        builder.build(path, tmp_path / "n.engine", BuildOptions("weak"))
    assert [each.name for each in tmp_path.iterdir()] == ["n.onnx"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("version", VERSIONS)
def test_timings_are_kept_and_merged(tmp_path: Path, version: str) -> None:
    options = BuildOptions(**{**vars(default(version)), "timing_cache": tmp_path / "t.cache"})
    for index, name in enumerate(("one", "two")):
        path = save(tmp_path / f"{index}.onnx", name=name)
        builder_of(version).build(path, tmp_path / f"{index}.engine", options)
    kept = (tmp_path / "t.cache").read_text()
    assert kept == f"{version}|GPU-A|{'fc1,fc2,one,two'}"


def test_timings_that_another_build_kept_meanwhile_stay(tmp_path: Path) -> None:
    class Meanwhile(Told):
        def finish(self) -> None:
            (tmp_path / "t.cache").write_text("11.1.0|GPU-A|another")

    options = BuildOptions(timing_cache=tmp_path / "t.cache")
    path = save(tmp_path / "n.onnx")
    builder_of("11.1.0").build(path, tmp_path / "n.engine", options, Meanwhile())
    assert (tmp_path / "t.cache").read_text() == "11.1.0|GPU-A|act,another,fc1,fc2"


@pytest.mark.parametrize("content", ["junk", "8.2.1.8|GPU-B|conv", "8.5.2.2|GPU-A|conv"])
def test_timings_of_elsewhere_are_refused_and_stay(tmp_path: Path, content: str) -> None:
    cache = tmp_path / "t.cache"
    cache.write_text(content)
    with pytest.raises(UserError, match=r"timing cache .* is damaged, or of another device"):
        builder_of("8.2.1.8").build(
            save(tmp_path / "n.onnx"),
            tmp_path / "n.engine",
            BuildOptions("weak", timing_cache=cache),
        )
    assert cache.read_text() == content
    assert not (tmp_path / "n.engine").exists()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine for TensorRT 10.3.0 on sm_86."""
    options = BuildOptions(sparse=True)
    out = tmp_path / "n.engine"
    builder_of("10.3.0").build(save(tmp_path / "n.onnx"), out, options)
    return out


def test_what_lies_beside_an_engine(engine: Path) -> None:
    header = read_header(engine)
    assert (header.runtime, header.version, header.sm) == ("tensorrt", "10.3.0", 86)
    assert (header.typing, header.flags) == ("strong", ("SPARSE_WEIGHTS",))
    assert header.layers is not None
    assert [layer["sparse"] for layer in header.layers] == [True, False, False]
    assert [layer["sparse_weights"] for layer in header.layers] == [True, True, None]
    assert header.log_tail == ("[MemUsageChange] Init CUDA",)
    assert header.onnx_sha256 != header.engine_sha256


@pytest.mark.parametrize(
    ("runtime", "version", "sm", "message"),
    [
        ("tensorrt", "10.7.0", 86, r"by TensorRT 10\.3\.0, and this is TensorRT 10\.7\.0"),
        ("tensorrt", "10.3", 86, r"by TensorRT 10\.3\.0, and this is TensorRT 10\.3;"),
        ("tensorrt-rtx", "1.7.1.116", 86, r"TensorRT 10\.3\.0, which TensorRT-RTX 1\.7\.1\.116"),
        ("tensorrt", "10.3.0", 87, "for sm_86, and the GPU here is sm_87"),
        ("tensorrt", "10.3.0", None, "sm_86, and no GPU is seen here"),
    ],
)
def test_an_engine_that_does_not_fit(
    engine: Path, runtime: Any, version: str, sm: int | None, message: str
) -> None:
    header = read_header(engine)
    with pytest.raises(UserError, match=message):
        check_engine_fits(header, runtime=runtime, version=version, sm=sm)


def test_an_engine_that_fits(engine: Path) -> None:
    header = read_header(engine)
    for version in ("10.3.0", "10.3.0.30", "10.3.0+cuda12"):
        check_engine_fits(header, runtime="tensorrt", version=version, sm=86)
    wide = header.model_copy(update={"hardware": "ampere_plus"})
    check_engine_fits(wide, runtime="tensorrt", version="10.3.0", sm=90)
    with pytest.raises(UserError, match="sm_75"):
        check_engine_fits(wide, runtime="tensorrt", version="10.3.0", sm=75)


def test_foreign_and_damaged_engines(engine: Path) -> None:
    sidecar, told = sidecar_of(engine), sidecar_of(engine).read_bytes()
    sidecar.unlink()
    with pytest.raises(UserError, match=r"n\.engine\.json is not beside it") as error:
        read_header(engine)
    assert "build the engine here" in error.value.fix
    for content in (b"{}", b"", told[:-9], told.replace(b'"sm": 86', b'"sm": 86, "more": 1')):
        sidecar.write_bytes(content)
        with pytest.raises(CheckFailed, match=r"n\.engine\.json was changed"):
            read_header(engine)
    sidecar.write_bytes(told)
    engine.write_bytes(engine.read_bytes()[:-1] + b" ")
    with pytest.raises(CheckFailed, match=r"n\.engine was changed"):
        builder_of("10.3.0").load(engine)
    engine.unlink()
    with pytest.raises(UserError, match="There is no engine"):
        read_header(engine)


def test_a_mismatch_is_found_before_the_engine_is_loaded(engine: Path) -> None:
    other = builder_of("10.16.1")
    other.trt.Runtime = None  # would be a TypeError if it was called
    with pytest.raises(UserError, match=r"10\.3\.0.*10\.16\.1"):
        other.load(engine)
    with pytest.raises(UserError, match=r"10\.3\.0.*10\.16\.1"):
        other.read_engine_layers(engine)


@pytest.mark.parametrize("number", [(8, 5), (10, 3), (11, 1)])
def test_layers_are_counted_as_the_script_on_the_board_does(number: tuple[int, int]) -> None:
    info = inspected(number)
    layers = parse_layers(json.dumps(info))
    assert [layer.precision for layer in layers] == ["int8", "int8", "fp16"]
    assert [layer.type for layer in layers] == ["CaskConvolution", "CaskConvolution", "Myelin"]
    mine, theirs = summarize(layers), board.parse_layers([], info)
    assert {key: mine[key] for key in ("layers", "fused_attention", "int8_layers")} == {
        key: theirs[key] for key in ("layers", "fused_attention", "int8_layers")
    }
    assert mine["sparse_layers"] == 1
    names = parse_layers('{"Layers": ["conv1 + relu", "fc"], "Bindings": []}')
    assert summarize(names)["int8_layers"] is None
    with pytest.raises(ValueError, match="no list of layers"):
        parse_layers("[]")


def test_sparsity_is_read_as_the_script_on_the_board_does() -> None:
    log = [
        "[V] (Sparsity) Layers eligible for sparse math: fc1, fc2",
        "[V] Layers eligible for something else: fc3",
        "[V] (Sparsity) TRT inference plan picked sparse implementation for layers: fc1",
    ]
    mine, theirs = parse_sparsity(log), board.parse_sparsity("\n".join(log))
    assert list(mine.eligible_sparse) == theirs["eligible_sparse"] == ["fc1", "fc2"]
    assert list(mine.picked_sparse) == theirs["picked_sparse"] == ["fc1"]


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_run_with_the_calls_of_their_release(tmp_path: Path, version: str) -> None:
    builder = builder_of(version)
    out = tmp_path / "n.engine"
    builder.build(save(tmp_path / "n.onnx"), out, default(version))
    runner = TensorrtRunner(out, builder=builder, device="cpu")
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    first = runner.run(x)
    assert np.array_equal(runner.run(x + 1), 2 * (x + 1))
    assert np.array_equal(first, 2 * x)
    assert runner.name == f"TensorRT {version}"
    assert runner.describe()["device"] == "sm_86"
    with pytest.raises(UserError, match=r"float32 of shape \[1, 4\], but got float64"):
        runner.run(x.astype(np.float64))
