"""TensorRT-RTX: real engines for Ampere and newer GPUs, built on any machine.

NVIDIA's ``tensorrt-rtx`` package parses ONNX and builds engines ahead of time without a GPU. An
engine of it runs on the TensorRT-RTX runtime only, never on TensorRT. It was accepted by the
builder and has not been run, so nothing is claimed about sparse or INT8 kernels: those are chosen
on the device.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from elastic_export.artifacts.files import write_atomically
from elastic_export.errors import CheckFailed, UserError
from elastic_export.progress import Progress, no_progress

__all__ = ["EngineReport", "available", "build", "supported_sms"]

RUNTIME = "TensorRT-RTX"
INSTALL = "pip install 'elastic-export[rtx]'"
NOTE = "Accepted by the builder, not run: the device chooses its kernels, sparse and INT8 included."


@dataclass(frozen=True)
class EngineReport:
    """What was built.

    Args:
        runtime: ``TensorRT-RTX``, the only runtime that can load the engine.
        version: The version of the builder.
        sm: Compute capability times ten (86 for 8.6).
        status: ``accepted``: the builder took the graph. It was not run.
        seconds: Time to parse and build.
        bytes: Size of the engine.
        layers: What the engine says of its layers; None here, because that needs the device.
        note: One sentence for the report.
    """

    runtime: str
    version: str
    sm: int
    status: str
    seconds: float
    bytes: int
    layers: int | None
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@cache
def available() -> str | None:
    """Return the version of the installed package, or None without it."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return None
    try:
        return str(_library().__version__)
    except (ImportError, OSError):
        return None


def supported_sms() -> list[int]:
    """Return the compute capabilities, times ten, that the installed package builds for."""
    names = _library().ComputeCapability.__members__
    return sorted(int(name[2:]) for name in names if re.fullmatch(r"SM\d+", name))


def build(onnx_path: Path, out: Path, *, sm: int, progress: Progress = no_progress) -> EngineReport:
    """Build an engine from an ONNX file, for one compute capability.

    The network is strongly typed: precisions are those of the graph. Weights that hold 2:4 may be
    run by sparse kernels.

    Args:
        onnx_path: The ONNX file, with static shapes.
        out: Where the engine is written, whole or not at all.
        sm: Compute capability times ten.
        progress: Told of the builder's phases.

    Raises:
        UserError: the package is missing, cannot build for ``sm``, or the file is missing, is not
            ONNX or has dynamic shapes.
        CheckFailed: the parser or the builder refuses the graph; node and message are named.
    """
    version = available()
    if version is None:
        raise UserError(
            f"Engines for {RUNTIME} need its Python package, which is not installed.",
            f"Install it with: {INSTALL}.",
        )
    _check_sm(sm, version)
    _check_file(onnx_path)
    trt = _library()
    started = time.perf_counter()
    log = _make_logger(trt)
    builder = trt.Builder(log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        raise _refused(onnx_path, " ".join(_parser_errors(parser)), version)

    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
    if hasattr(trt.BuilderFlag, "SPARSE_WEIGHTS"):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    monitor = _make_monitor(trt, progress, f"build {out.name} for sm_{sm}")
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if monitor.interrupted is not None:
        raise monitor.interrupted
    if engine is None:
        raise _refused(onnx_path, log.last_error(), version)
    data = bytes(engine)
    write_atomically(out, data)
    seconds = time.perf_counter() - started
    return EngineReport(RUNTIME, version, sm, "accepted", seconds, len(data), None, NOTE)


@cache
def _library() -> Any:
    return importlib.import_module("tensorrt_rtx")


def _check_sm(sm: int, version: str) -> None:
    known = supported_sms()
    if sm in known:
        return
    listed = ", ".join(f"sm_{each}" for each in known)
    raise UserError(
        f"{RUNTIME} {version} builds for {listed}, not for sm_{sm}.",
        "Build with TensorRT on the device itself; the bundle carries the ONNX for it.",
    )


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"There is no ONNX file at {path}.", "Check the path, or export it first.")
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's error class is no part of onnx's interface
        raise UserError(
            f"{path} is not a complete ONNX file.", "Export it again, or copy it again."
        ) from error
    if not graph.node or not graph.output:
        raise UserError(f"{path} holds no ONNX graph.", "Export it again, or copy it again.")
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                raise UserError(
                    f'Axis {axis} of the input "{value.name}" of {path.name} has no fixed size.',
                    "Export it with static shapes, one file for each batch size.",
                )


def _refused(path: Path, reason: str, version: str) -> CheckFailed:
    return CheckFailed(
        f"{RUNTIME} {version} refuses {path.name}: {reason or 'it gives no reason'}",
        "Export another flavour or opset; inspect the file to see the node.",
    )


def _parser_errors(parser: Any) -> Iterator[str]:
    """Yield a sentence for each error: node, operator and the parser's message."""
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node, operator = error.node_name(), error.node_operator()
        where = f'node "{node}" ({operator}): ' if operator else ""
        yield f"{where}{error.desc().strip()}."


def _make_logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps the errors; prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

        def last_error(self) -> str:
            return self.errors[-1] if self.errors else ""

    return Log()


def _make_monitor(trt: Any, progress: Progress, label: str) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Passes the steps of the outermost phase on; an exception there stops the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted: BaseException | None = None
            self._outermost: str | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None and self._outermost is None:
                self._outermost = phase
                self._tell(lambda: progress.start(label, steps))

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self._outermost:
                self._tell(progress.advance)
            return self.interrupted is None

        def phase_finish(self, phase: str) -> None:
            if phase == self._outermost:
                self._tell(progress.finish)

        def _tell(self, call: Any) -> None:
            try:
                call()
            except BaseException as error:  # must not unwind through C++
                self.interrupted = self.interrupted or error

    return Monitor()
