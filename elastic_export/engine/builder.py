"""Engines from ONNX files: one interface to TensorRT 8, 10, 11 and TensorRT-RTX."""

from __future__ import annotations

import importlib
import importlib.util
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from elastic_export.artifacts.digest import sha256_file
from elastic_export.engine.adapters.callbacks import deferred_interrupt, make_log, make_monitor
from elastic_export.engine.adapters.network import make_network, read_graph, refused
from elastic_export.engine.adapters.options import BuildOptions, check_options
from elastic_export.engine.adapters.releases import INSTALL, MODULES, TITLES, Release, RuntimeName
from elastic_export.engine.adapters.settings import keep_timings, make_settings
from elastic_export.engine.layers import EngineLayer, parse_layers, parse_sparsity, summarize
from elastic_export.engine.sidecar import (
    EngineHeader,
    check_engine_fits,
    read_header,
    write_engine,
)
from elastic_export.errors import UserError
from elastic_export.progress import Progress, no_progress

__all__ = ["BuildOptions", "EngineBuilder", "EngineReport", "device_name", "device_sm", "installed"]

_NOTES = {
    "accepted": "Accepted by the builder, not run: the device chooses its kernels, sparse and INT8 "
    "included.",
    "built": "Built for the GPU of this machine, which chose the kernels.",
}


@dataclass(frozen=True)
class EngineReport:
    """What was built.

    Attributes:
        runtime: ``TensorRT`` or ``TensorRT-RTX``, the only runtime that can load the engine.
        version: The version of the builder.
        sm: Compute capability times ten (86 for 8.6).
        status: ``accepted``: the builder took the graph and another machine runs it; ``built``: the
            kernels were chosen here.
        seconds: Time to parse and build.
        bytes: Size of the engine.
        layers: How many layers the engine has; None where it cannot be loaded here.
        layers_note: Why ``layers`` is None.
        fused_attention: Layers that are fused attention, as ``layers``.
        int8_layers: Layers that read INT8, as ``layers``.
        eligible_sparse: Layers that could run a 2:4 kernel; None where the builder does not say.
        picked_sparse: Layers that do, as ``eligible_sparse``.
        typing: ``strong`` or ``weak``.
        flags: The builder flags that were set.
        note: One sentence for the report.
    """

    runtime: str
    version: str
    sm: int
    status: str
    seconds: float
    bytes: int
    layers: int | None
    layers_note: str
    fused_attention: int | None
    int8_layers: int | None
    eligible_sparse: tuple[str, ...] | None
    picked_sparse: tuple[str, ...] | None
    typing: str
    flags: tuple[str, ...]
    note: str

    @classmethod
    def of(cls, header: EngineHeader) -> EngineReport:
        """Tell of an engine what lies beside it: the same words for a new one and a kept one."""
        layers = None if header.layers is None else [EngineLayer(**each) for each in header.layers]
        counts = {} if layers is None else summarize(layers)
        status = "accepted" if header.runtime == "tensorrt-rtx" else "built"
        return cls(
            runtime=TITLES[header.runtime],
            version=header.version,
            sm=header.sm,
            status=status,
            seconds=header.seconds,
            bytes=header.bytes,
            layers=counts.get("layers"),
            layers_note=header.layers_note,
            fused_attention=counts.get("fused_attention"),
            int8_layers=counts.get("int8_layers"),
            eligible_sparse=header.eligible_sparse,
            picked_sparse=header.picked_sparse,
            typing=header.typing,
            flags=header.flags,
            note=_NOTES[status],
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with the fields that say nothing left out but ``layers``."""
        found = {key: value for key, value in asdict(self).items() if value not in (None, "")}
        listed = {key: list(value) for key, value in found.items() if isinstance(value, tuple)}
        return {"layers": None, **found, **listed}


@cache
def installed(runtime: RuntimeName) -> str | None:
    """Return the version of a runtime's Python module, or None without it."""
    if importlib.util.find_spec(MODULES[runtime]) is None:
        return None
    try:
        return str(importlib.import_module(MODULES[runtime]).__version__)
    except (ImportError, OSError, AttributeError):
        return None


def device_sm() -> int | None:
    """Return the compute capability of this machine's GPU, times ten; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def device_name() -> str:
    """Return the name of this machine's GPU; empty without one."""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


class EngineBuilder:
    """Builds engines with one runtime's Python module, and reads them back.

    Args:
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        module: The module, where it is not the installed one.
        sm: Compute capability of the GPU here, where it is not to be asked for.

    Raises:
        UserError: The module is not installed, or its release is unknown.
    """

    def __init__(
        self, runtime: RuntimeName, *, module: Any | None = None, sm: int | None = None
    ) -> None:
        if module is None:
            if installed(runtime) is None:
                raise UserError(
                    f"Engines for {TITLES[runtime]} need its Python package, which is not "
                    "installed.",
                    f"Install it with: {INSTALL[runtime]}.",
                )
            module = importlib.import_module(MODULES[runtime])
        self.runtime: RuntimeName = runtime
        self.trt = module
        self.version = str(module.__version__)
        self.release = Release.of(runtime, self.version)
        self._sm = sm

    @property
    def sm(self) -> int | None:
        """Compute capability of the GPU here, times ten; None without one."""
        return device_sm() if self._sm is None else self._sm

    @property
    def gpu(self) -> str:
        """Name of the GPU that kernels are timed on; empty where a build times none."""
        return "" if self.release.chooses_sm else device_name()

    @property
    def tells_progress(self) -> bool:
        """Whether a build tells its progress; others are silent for minutes."""
        return self.release.monitor and hasattr(self.trt, "IProgressMonitor")

    def supported_sms(self) -> list[int]:
        """Return what the builder can be told to build for; empty where it cannot be told."""
        if not self.release.chooses_sm:
            return []
        names = self.trt.ComputeCapability.__members__
        return sorted(int(name[2:]) for name in names if name[:2] == "SM" and name[2:].isdigit())

    def build(
        self,
        onnx_path: Path,
        out: Path,
        options: BuildOptions,
        progress: Progress = no_progress,
    ) -> EngineReport:
        """Build an engine and write it with what goes with it, or write nothing.

        Args:
            onnx_path: The ONNX file, with static shapes.
            out: The engine; ``OUT.json`` beside it says where it fits.
            options: How to build.
            progress: Told of the builder's phases, where the release has a progress monitor.

        Raises:
            UserError: The release cannot do what is asked, the GPU is not the one asked for, or the
                file is missing, is not ONNX or has dynamic shapes.
            CheckFailed: The parser or the builder refuses the graph; node and message are named.
            KeyboardInterrupt: Ctrl-C was pressed; the builder stopped at its next step.
        """
        sm = self.target(options)
        graph = read_graph(onnx_path)
        if options.typing == "weak" and graph.quantized != options.int8:
            raise UserError(
                f"{onnx_path.name} holds {'' if graph.quantized else 'no '}Q/DQ, and INT8 was "
                f"{'not ' if graph.quantized else ''}asked for.",
                "Ask for INT8 with a quantized graph, and with no other.",
            )
        started = time.perf_counter()
        log = make_log(self.trt)
        with deferred_interrupt() as interrupt:
            builder = self.trt.Builder(log)
            network, _parser = make_network(self.trt, self.release, builder, log, graph, options)
            config = make_settings(self.trt, self.release, builder, network, options)
            monitor = None
            if self.release.monitor:
                label = f"build {out.name} for sm_{sm}"
                monitor = make_monitor(self.trt, progress, label, interrupt)
            if monitor is not None:
                config.progress_monitor = monitor
            engine = builder.build_serialized_network(network, config)
            if monitor is not None:
                monitor.close()
        if interrupt.cause is not None:
            raise interrupt.cause
        if engine is None:
            reason = log.errors[-1] if log.errors else ""
            reason = f"{graph.mentioned(reason)}{reason}"
            raise refused(graph, self.release, self.version, reason)
        data = bytes(engine)
        layers, why_not = self._layers(data, sm, options.dla)
        sparsity = parse_sparsity(log.sparsity) if log.sparsity else None
        header = write_engine(
            out,
            data,
            {
                "runtime": self.runtime,
                "version": self.version,
                "sm": sm,
                "hardware": options.hardware,
                "dla": options.dla,
                "typing": options.typing,
                "flags": options.flags,
                "onnx_sha256": sha256_file(onnx_path),
                "layers": None if layers is None else tuple(asdict(layer) for layer in layers),
                "layers_note": why_not,
                "eligible_sparse": None if sparsity is None else sparsity.eligible_sparse,
                "picked_sparse": None if sparsity is None else sparsity.picked_sparse,
                "seconds": round(time.perf_counter() - started, 3),
                "gpu": self.gpu,
                "options": options.asked,
                "log_tail": tuple(log.tail),
            },
        )
        if options.timing_cache is not None:
            keep_timings(config, options.timing_cache)
        return EngineReport.of(header)

    def read_engine_layers(self, engine: Path) -> tuple[list[EngineLayer] | None, str]:
        """Load an engine and ask it for its layers.

        Returns:
            The layers and an empty text, or None and the reason.

        Raises:
            UserError: There is no such engine, or it does not fit this runtime or GPU.
            CheckFailed: It was changed.
        """
        header = read_header(engine)
        sm = self.sm
        if sm is not None:
            check_engine_fits(header, runtime=self.runtime, version=self.version, sm=sm)
        return self._layers(engine.read_bytes(), header.sm, header.dla)

    def load(self, engine: Path) -> tuple[Any, Any]:
        """Load an engine that fits.

        Returns:
            The engine, and its runtime, which must live as long.

        Raises:
            UserError: It does not fit this runtime or GPU, or cannot be loaded.
            CheckFailed: It was changed.
        """
        header = read_header(engine)
        check_engine_fits(header, runtime=self.runtime, version=self.version, sm=self.sm)
        log = make_log(self.trt)
        runtime = self._runtime(log, header.dla)
        loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
        if loaded is None:
            reason = log.errors[-1] if log.errors else "it gives no reason"
            raise UserError(
                f"{TITLES[self.runtime]} {self.version} cannot load {engine}: {reason}.",
                "Build it again from its ONNX file.",
            )
        return loaded, (runtime, log)

    def target(self, options: BuildOptions) -> int:
        """Return the compute capability, times ten, that such a build is for.

        Raises:
            UserError: The release cannot do what is asked, or cannot build for that here.
        """
        check_options(options, self.release, self.version)
        what = f"{TITLES[self.runtime]} {self.version}"
        if self.release.chooses_sm:
            known = self.supported_sms()
            if options.sm in known:
                return options.sm
            listed = ", ".join(f"sm_{each}" for each in known)
            raise UserError(
                f"{what} builds for {listed}, not for sm_{options.sm}.",
                "Build with TensorRT on the device itself; the bundle carries the ONNX for it.",
            )
        here = self.sm
        if here is None:
            raise UserError(
                f"{what} builds on the GPU that it builds for, and no GPU is seen here.",
                "Build on the device: the bundle carries the ONNX and the script for it.",
            )
        if options.sm not in (None, here):
            raise UserError(
                f"{what} builds for the GPU of this machine, sm_{here}, not for sm_{options.sm}.",
                "Build on the device: the bundle carries the ONNX and the script for it.",
            )
        return here

    def _runtime(self, log: Any, dla: int | None) -> Any:
        runtime = self.trt.Runtime(log)
        if dla is not None:
            # Core 0 would run it otherwise (github.com/microsoft/onnxruntime issue 26680).
            runtime.DLA_core = dla
        return runtime

    def _layers(
        self, data: bytes, sm: int, dla: int | None
    ) -> tuple[list[EngineLayer] | None, str]:
        if self.sm is None:
            return None, "an engine tells its layers once it is loaded, and no GPU is seen here"
        if self.release.chooses_sm and self.sm != sm:
            return None, f"the engine is for sm_{sm}, and the GPU here is sm_{self.sm}"
        log = make_log(self.trt)
        engine = self._runtime(log, dla).deserialize_cuda_engine(data)
        if engine is None:
            return None, log.errors[-1] if log.errors else "the engine cannot be loaded here"
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        try:
            return parse_layers(text), ""
        except ValueError as error:
            return None, f"the engine's description of its layers cannot be read: {error}"
