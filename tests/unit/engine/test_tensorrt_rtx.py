"""Real builds with NVIDIA's TensorRT-RTX, which needs no GPU to build."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from elastic_export.artifacts.digest import sha256_file
from elastic_export.engine import builder, tensorrt_rtx
from elastic_export.engine.builder import BuildOptions, EngineBuilder
from elastic_export.engine.runners import TensorrtRunner
from elastic_export.engine.sidecar import read_header
from elastic_export.errors import CheckFailed, UserError

needs_package = pytest.mark.skipif(
    tensorrt_rtx.available() is None, reason="tensorrt-rtx is not installed (extra rtx)"
)


def _save(
    path: Path, kind: str = "float32", *, op: str = "Relu", batch: int | str = 1, wide: int = 64
) -> Path:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((64, wide)).astype(kind),
        "b1": rng.standard_normal(wide).astype(kind),
        "w2": rng.standard_normal((wide, 8)).astype(kind),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "w1"], ["a"], name="fc1"),
            helper.make_node("Add", ["a", "b1"], ["b"], name="bias"),
            helper.make_node(op, ["b"], ["c"], name="the activation"),
            helper.make_node("MatMul", ["c", "w2"], ["logits"], name="fc2"),
        ],
        "net",
        [helper.make_tensor_value_info("input", element, [batch, 64])],
        [helper.make_tensor_value_info("logits", element, [batch, 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@needs_package
@pytest.mark.parametrize("sm", [80, 86])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_builds_an_engine(
    tmp_path: Path, kind: str, sm: int, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net.engine"
    report = tensorrt_rtx.build(_save(tmp_path / "net.onnx", kind), out, sm=sm)
    assert out.stat().st_size == report.bytes > 1000
    assert report.status == "accepted"
    assert report.runtime == "TensorRT-RTX"
    assert report.version == tensorrt_rtx.available()
    assert report.sm == sm
    assert 0 < report.seconds < 60
    assert json.loads(json.dumps(report.to_json()))["layers"] is None
    assert "not run" in report.note
    assert "no GPU" in report.layers_note or report.layers is not None
    header = read_header(out)
    assert (header.runtime, header.version, header.sm) == ("tensorrt-rtx", report.version, sm)
    assert header.engine_sha256 == sha256_file(out)
    assert header.log_tail
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["net.engine", "net.engine.json", "net.onnx"]
    assert capfd.readouterr() == ("", "")


@needs_package
def test_engines_hold_the_weights(tmp_path: Path) -> None:
    small = tensorrt_rtx.build(_save(tmp_path / "s.onnx"), tmp_path / "s.engine", sm=86)
    large = tensorrt_rtx.build(_save(tmp_path / "l.onnx", wide=4096), tmp_path / "l.engine", sm=86)
    assert large.bytes - small.bytes > 0.9 * 4 * (4096 - 64) * (64 + 8)


@needs_package
def test_a_refused_node_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = _save(tmp_path / "bad.onnx", op="FooBar")
    with pytest.raises(CheckFailed, match=r'node "the activation" \(FooBar\): .*Plugin not found'):
        tensorrt_rtx.build(path, tmp_path / "bad.engine", sm=86)
    assert not (tmp_path / "bad.engine").exists()


@needs_package
def test_a_graph_the_builder_refuses(tmp_path: Path) -> None:
    """The ORT form of INT8, with a zero point: the parser takes no such graph."""
    path = _save(tmp_path / "asymmetric.onnx")
    model = onnx.load(path)
    for name, value in (("s", np.float32(0.1)), ("z", np.uint8(128))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.graph.node[0].input[0] = "dq"
    for node in (
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], name="dequantize"),
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"], name="quantize"),
    ):
        model.graph.node.insert(0, node)
    onnx.save(model, path)
    with pytest.raises(CheckFailed, match=r"refuses asymmetric\.onnx: node \"quantize\""):
        tensorrt_rtx.build(path, tmp_path / "bad.engine", sm=86)


@needs_package
@pytest.mark.parametrize("sm", [53, 87, 90])
def test_an_unsupported_device_says_which_are(tmp_path: Path, sm: int) -> None:
    with pytest.raises(UserError, match=f"sm_80, sm_86, .*not for sm_{sm}") as error:
        tensorrt_rtx.build(_save(tmp_path / "net.onnx"), tmp_path / "net.engine", sm=sm)
    assert "on the device" in error.value.fix
    assert {80, 86, 89} <= set(tensorrt_rtx.supported_sms())


@needs_package
def test_files_that_are_no_static_onnx(tmp_path: Path) -> None:
    out = tmp_path / "net.engine"
    with pytest.raises(UserError, match="There is no file"):
        tensorrt_rtx.build(tmp_path / "none.onnx", out, sm=86)
    for content, message in (
        (b"", "holds no ONNX graph"),
        (b"\x01junk", "cannot be read as an ONNX model"),
    ):
        (tmp_path / "junk.onnx").write_bytes(content)
        with pytest.raises(UserError, match=message):
            tensorrt_rtx.build(tmp_path / "junk.onnx", out, sm=86)
    with pytest.raises(UserError, match=r"Axis 0 .* has no fixed size"):
        tensorrt_rtx.build(_save(tmp_path / "free.onnx", batch="N"), out, sm=86)
    assert not out.exists()


@needs_package
def test_progress_comes_from_the_builder(tmp_path: Path) -> None:
    told: list[str] = []

    class Told:
        def start(self, label: str, total: int) -> None:
            told.append(f"{label}: {total > 0}")

        def advance(self, steps: int = 1, note: str = "") -> None:
            told.append("step")

        def finish(self) -> None:
            told.append("end")

    tensorrt_rtx.build(
        _save(tmp_path / "net.onnx"), tmp_path / "net.engine", sm=86, progress=Told()
    )
    assert told[0] == "build net.engine for sm_86: True"
    assert told[-1] == "end"
    assert told.count("step") >= 2


@needs_package
def test_an_interrupt_stops_the_build_and_writes_nothing(tmp_path: Path) -> None:
    class Interrupts:
        def start(self, label: str, total: int) -> None: ...

        def advance(self, steps: int = 1, note: str = "") -> None:
            raise KeyboardInterrupt

        def finish(self) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        tensorrt_rtx.build(
            _save(tmp_path / "net.onnx"), tmp_path / "net.engine", sm=86, progress=Interrupts()
        )
    assert not (tmp_path / "net.engine").exists()


@needs_package
def test_ctrl_c_stops_the_build_at_its_next_step(tmp_path: Path) -> None:
    class Presses:
        def start(self, label: str, total: int) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        def advance(self, steps: int = 1, note: str = "") -> None: ...

        def finish(self) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        tensorrt_rtx.build(
            _save(tmp_path / "net.onnx"), tmp_path / "net.engine", sm=86, progress=Presses()
        )
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


@needs_package
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = _save(tmp_path / "net.onnx"), tmp_path / "net.engine"
    tensorrt_rtx.build(path, out, sm=86)
    before = read_header(out)
    monkeypatch.setattr(Path, "write_bytes", _full)
    with pytest.raises(UserError):
        tensorrt_rtx.build(path, out, sm=80)
    assert read_header(out) == before
    assert len(list(tmp_path.iterdir())) == 3


def _full(self: Path, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@needs_package
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BuildOptions("weak", sm=86), "strongly typed networks only"),
        (BuildOptions(), "must be told which compute capability"),
        (BuildOptions(sm=86, timing_cache=Path("t")), "has no timing cache"),
        (BuildOptions(sm=86, hardware="ampere_plus"), "no hardware compatibility level"),
    ],
)
def test_options_it_does_not_have(tmp_path: Path, options: BuildOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EngineBuilder("tensorrt-rtx").build(_save(tmp_path / "net.onnx"), tmp_path / "e", options)
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


@needs_package
@pytest.mark.parametrize("sm", [75, 89, 120])
def test_level_and_workspace(tmp_path: Path, sm: int) -> None:
    options = BuildOptions(sm=sm, level=1, workspace_mib=64)
    report = EngineBuilder("tensorrt-rtx").build(
        _save(tmp_path / "net.onnx", "float16"), tmp_path / "net.engine", options
    )
    assert (report.status, report.sm, report.flags) == ("accepted", sm, ())


@needs_package
@pytest.mark.skipif(builder.device_sm() is not None, reason="there is a GPU that may load it")
def test_an_engine_is_not_loaded_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "net.engine"
    tensorrt_rtx.build(_save(tmp_path / "net.onnx"), out, sm=86)
    layers, why = EngineBuilder("tensorrt-rtx").read_engine_layers(out)
    assert layers is None
    assert "no GPU is seen here" in why
    with pytest.raises(UserError, match="for a GPU of sm_86, and no GPU is seen here"):
        TensorrtRunner(out, runtime="tensorrt-rtx")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "installed", lambda runtime: None)
    for runtime, extra in (("tensorrt", "trt"), ("tensorrt-rtx", "rtx")):
        with pytest.raises(UserError) as error:
            EngineBuilder(runtime)  # type: ignore[arg-type]
        assert f"pip install 'elastic-export[{extra}]'" in error.value.fix
    with pytest.raises(UserError):
        tensorrt_rtx.build(_save(tmp_path / "net.onnx"), tmp_path / "net.engine", sm=86)


def test_available_is_none_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.importlib.util, "find_spec", lambda _: None)
    builder.installed.cache_clear()
    assert tensorrt_rtx.available() is None
    builder.installed.cache_clear()
