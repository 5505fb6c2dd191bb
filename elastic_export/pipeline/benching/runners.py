"""One table: runner name and kind of path to what makes the runners, a precision each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn

from elastic_export.artifacts.digest import sha256_file, sha256_json
from elastic_export.engine.adapters.releases import TITLES, RuntimeName
from elastic_export.engine.builder import BuildOptions, EngineBuilder, EngineReport
from elastic_export.engine.bundle_options import options_for, weakly_typed
from elastic_export.engine.kept import KeptEngine, folder_for, kept_engine
from elastic_export.engine.runners import (
    OrtRunner,
    Runner,
    TensorrtOptions,
    TensorrtRunner,
    TorchRunner,
)
from elastic_export.engine.runners.torch_module import TorchPrecision, fits_sparse_kernels
from elastic_export.engine.sidecar import check_engine_fits, read_header
from elastic_export.errors import UserError
from elastic_export.pipeline.benching.names import RunnerName
from elastic_export.pipeline.subjects import Kind, Subject
from elastic_export.progress import Progress

__all__ = ["Made", "Settings", "makers"]


@dataclass(frozen=True)
class Settings:
    """What runners are made with.

    Attributes:
        threads: On the CPU.
        fresh: Build engines that are there already.
        progress: Told of builds.
    """

    threads: int
    fresh: bool
    progress: Progress


@dataclass(frozen=True)
class Made:
    """A runner, and the engine that was built or taken for it."""

    runner: Runner
    engine: KeptEngine | None = None


Make = Callable[[], Made]


def makers(name: RunnerName, subject: Subject, settings: Settings) -> dict[str, Make]:
    """Find what makes the runners of one name for one path.

    Returns:
        Precision to what makes its runner; only calling it loads or builds anything, and raises
        what the runner says where it cannot.

    Raises:
        UserError: The runner does not take such a path.
    """
    found = _TABLE[name].get(subject.kind)
    if found is None:
        raise _no_module(subject) if name.startswith("torch") else _no_onnx(subject)
    return found(subject, settings)


def _onnxruntime(
    provider: Literal["cpu", "cuda"], subject: Subject, settings: Settings
) -> dict[str, Make]:
    def make(path: Path) -> Made:
        return Made(OrtRunner(path, threads=settings.threads, provider=provider))

    return {precision: partial(make, path) for precision, path in subject.models.items()}


def _onnxruntime_tensorrt(subject: Subject, settings: Settings) -> dict[str, Make]:
    def make(precision: str, path: Path) -> Made:
        allowed = {} if subject.bundle is None else weakly_typed(subject.bundle, precision)
        # The provider has no switch to build anew; without a cache it does, and keeps nothing.
        options = TensorrtOptions(sparse=True, **allowed)
        if not settings.fresh:
            # Its name for an engine does not depend on the weights (microsoft/onnxruntime issue
            # 6455), so the folder's does.
            made_of = sha256_json([sha256_file(path), options.to_provider(), path.name])[:16]
            kept = folder_for(subject.path) / f"onnxruntime-{path.stem}-{made_of}"
            options = replace(options, cache=kept)
        return Made(OrtRunner(path, threads=settings.threads, provider="tensorrt", options=options))

    return {precision: partial(make, precision, path) for precision, path in subject.models.items()}


def _torch(subject: Subject, settings: Settings) -> dict[str, Make]:
    module = _module(subject)
    return {"fp32": lambda: Made(TorchRunner(module, threads=settings.threads))}


def _torch_cuda(subject: Subject, settings: Settings) -> dict[str, Make]:
    module = _module(subject)

    def make(precision: TorchPrecision, sparse: bool = False) -> Made:
        return Made(
            TorchRunner(
                module,
                threads=settings.threads,
                device="cuda",
                precision=precision,
                sparse=sparse,
            )
        )

    found: dict[str, Make] = {
        "fp32": partial(make, "fp32"),
        "autocast": partial(make, "autocast"),
        "half": partial(make, "half"),
    }
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if any(fits_sparse_kernels(layer.weight) for layer in linear):
        found["half 2:4"] = partial(make, "half", sparse=True)
    return found


def _engines(runtime: RuntimeName, subject: Subject, settings: Settings) -> dict[str, Make]:
    def make(precision: str) -> Made:
        builder = EngineBuilder(runtime)
        engine = _own(builder, subject, precision, settings) or kept_engine(
            builder,
            subject.models[precision],
            folder_for(subject.path),
            _options(builder, subject, precision),
            fresh=settings.fresh,
            progress=settings.progress,
        )
        return Made(TensorrtRunner(engine.path, runtime=runtime, builder=builder), engine)

    return {precision: partial(make, precision) for precision in subject.models}


def _own(
    builder: EngineBuilder, subject: Subject, precision: str, settings: Settings
) -> KeptEngine | None:
    """Take the engine that a bundle brings, where it fits this machine."""
    path = subject.own_engine(precision)
    if subject.bundle is None or settings.fresh or not path.is_file():
        return None
    header = read_header(path)
    try:
        check_engine_fits(header, runtime=builder.runtime, version=builder.version, sm=builder.sm)
    except UserError:
        return None
    return KeptEngine(path, EngineReport.of(header), reused=True)


def _options(builder: EngineBuilder, subject: Subject, precision: str) -> BuildOptions:
    """Tell how an engine for the GPU here is built; a single file is taken as it says itself."""
    told = BuildOptions(sparse=True)
    if subject.bundle is not None:
        told = options_for(subject.bundle, precision, builder)
    elif "strong" not in builder.release.typings:
        told = BuildOptions(typing="weak", int8=precision == "int8", sparse=True)
    if not builder.release.chooses_sm:
        return told
    if builder.sm is None:
        raise UserError(
            f"An engine of {TITLES[builder.runtime]} runs on a GPU, and none is seen here.",
            'Build it with "elastic-export compile", and run it on a machine with the GPU.',
        )
    return replace(told, sm=builder.sm)


def _module(subject: Subject) -> nn.Module:
    assert subject.descendant is not None
    return subject.descendant.module


def _no_module(subject: Subject) -> UserError:
    return UserError(
        f"torch runs modules, and {subject.path} holds ONNX.",
        "Give a descendant (.safetensors), as elastic-export extract writes it.",
    )


def _no_onnx(subject: Subject) -> UserError:
    return UserError(
        f"{subject.path} is a torch module and no ONNX file.",
        "Export it first, and give the bundle: elastic-export export DESCENDANT --target TARGET.",
    )


_Table = Mapping[RunnerName, Mapping[Kind, Callable[[Subject, Settings], dict[str, Make]]]]
_CPU, _CUDA = (partial(_onnxruntime, provider) for provider in ("cpu", "cuda"))
_TENSORRT, _RTX = (partial(_engines, runtime) for runtime in ("tensorrt", "tensorrt-rtx"))
_TABLE: _Table = {
    "onnxruntime": {"bundle": _CPU, "onnx": _CPU},
    "onnxruntime-cuda": {"bundle": _CUDA, "onnx": _CUDA},
    "onnxruntime-tensorrt": {"bundle": _onnxruntime_tensorrt, "onnx": _onnxruntime_tensorrt},
    "torch": {"descendant": _torch},
    "torch-cuda": {"descendant": _torch_cuda},
    "tensorrt": {"bundle": _TENSORRT, "onnx": _TENSORRT},
    "tensorrt-rtx": {"bundle": _RTX, "onnx": _RTX},
}
