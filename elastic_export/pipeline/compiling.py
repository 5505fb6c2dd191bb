"""Engines built on this machine, of a bundle's models or of one ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from elastic_export.config.targets import load_target
from elastic_export.engine.adapters.releases import INSTALL, TITLES, RuntimeName, Typing
from elastic_export.engine.builder import BuildOptions, EngineBuilder, device_sm, installed
from elastic_export.engine.bundle import Bundle
from elastic_export.engine.bundle_options import options_for
from elastic_export.engine.kept import folder_for, kept_engine, refuse_inside_bundle
from elastic_export.engine.sidecar import sidecar_of
from elastic_export.errors import UserError
from elastic_export.pipeline.subjects import Subject, open_subject, sm_of
from elastic_export.progress import Progress, no_progress

__all__ = ["CompileRequest", "compile_here"]


@dataclass(frozen=True)
class CompileRequest:
    """What is asked for; what is left out follows from the bundle, the file and the machine.

    Attributes:
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        sms: Compute capabilities, times ten.
        precisions: Of a bundle's models.
        fp16: Allow FP16 in a file's weakly typed network.
        int8: Allow INT8 in one with Q/DQ.
        sparse: Let the builder time 2:4 kernels against dense ones.
        level: Optimisation level, 0 to 5.
        workspace_mib: Most scratch memory of a kernel.
        hardware: ``none``, ``ampere_plus`` or ``same_compute_capability``.
        timing_cache: File of kernel timings.
        out: Folder for the engines.
        fresh: Build what is there already.
    """

    runtime: RuntimeName | None = None
    sms: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()
    fp16: bool = False
    int8: bool = False
    sparse: bool = True
    level: int | None = None
    workspace_mib: int | None = None
    hardware: str = "none"
    timing_cache: Path | None = None
    out: Path | None = None
    fresh: bool = False


def compile_here(
    path: Path, request: CompileRequest, *, progress: Progress = no_progress
) -> dict[str, Any]:
    """Build engines, or take those that were built of the same file in the same way.

    Args:
        path: A bundle's folder, or an ONNX file.
        request: What is asked for.
        progress: Told of every build.

    Returns:
        ``runtime``, ``version``, ``out``; ``engines``, each with ``precision``, ``file``,
        ``sidecar``, ``reused`` and what the builder said; ``notes``.

    Raises:
        UserError: The runtime is not here or cannot build what is asked; nothing was built then.
        CheckFailed: The parser or the builder refuses a file, or a bundle was changed.
    """
    subject = open_subject(path)
    if subject.kind == "descendant":
        raise UserError(
            f"{path} is a descendant, and engines are built of ONNX.",
            "Export it first: elastic-export export DESCENDANT --target TARGET.",
        )
    runtime = request.runtime or _runtime_of(subject)
    _refuse_elsewhere(subject, runtime)
    builder = EngineBuilder(runtime)
    folder = request.out or folder_for(path)
    refuse_inside_bundle(folder)
    jobs = list(_jobs(subject, request, builder))
    for _, options in jobs:
        builder.target(options)  # before minutes are spent on the first
    engines = []
    for precision, options in jobs:
        # Asked for in a folder, an engine is not taken from the bundle instead.
        at_home = subject.bundle is not None and request.out is None
        own = (subject.own_engine(precision),) if at_home else ()
        kept = kept_engine(
            builder,
            subject.models[precision],
            folder,
            options,
            also=own,
            fresh=request.fresh,
            progress=progress,
        )
        where = {"file": str(kept.path), "sidecar": str(sidecar_of(kept.path))}
        told = kept.report.to_json()
        engines.append({"precision": precision, **where, "reused": kept.reused, **told})
    said = [engine.get(key) for key in ("note", "layers_note") for engine in engines]
    return {
        "runtime": TITLES[builder.runtime],
        "version": builder.version,
        "out": str(folder),
        "engines": engines,
        "notes": list(dict.fromkeys(_sentence(note) for note in said if note)),
    }


def _refuse_elsewhere(subject: Subject, runtime: RuntimeName) -> None:
    """Send whoever has a bundle for a board to the board: its engines are built nowhere else."""
    if subject.bundle is None or runtime != "tensorrt" or device_sm() == sm_of(subject.bundle):
        return
    target = subject.bundle.manifest.target
    try:
        kind = load_target(target).target.kind
    except UserError:
        return
    if kind == "jetson":
        raise UserError(
            f"Engines for {target} are built on the board itself, and this machine is none.",
            "Build and measure there: elastic-export bench BUNDLE --on USER@BOARD, or run a "
            "build_engine script of the bundle on it.",
        )


def _runtime_of(subject: Subject) -> RuntimeName:
    """Choose the runtime a bundle names; for a file TensorRT where it can build, else RTX."""
    if subject.bundle is not None:
        name = subject.bundle.manifest.runtime.name
        if name == "onnxruntime":
            raise UserError(
                f"The bundle {subject.path} is for ONNX Runtime, which runs its files as they are.",
                "Export the descendant for a GPU target, and compile that bundle.",
            )
        return name
    here: dict[RuntimeName, bool] = {
        "tensorrt": installed("tensorrt") is not None and device_sm() is not None,
        "tensorrt-rtx": installed("tensorrt-rtx") is not None,
    }
    for name, usable in here.items():
        if usable:
            return name
    raise UserError(
        "Neither TensorRT-RTX nor TensorRT with a GPU is on this machine.",
        f"Install one: {' or '.join(INSTALL[name] for name in here)}.",
    )


def _jobs(
    subject: Subject, request: CompileRequest, builder: EngineBuilder
) -> Iterator[tuple[str, BuildOptions]]:
    """List each engine: the precision of its file and how it is built."""
    if subject.bundle is None and request.precisions:
        raise UserError(
            f"{subject.path} is one file of one precision.",
            "Leave --precision away, or give a bundle.",
        )
    if subject.bundle is not None and (request.fp16 or request.int8):
        raise UserError(
            "A bundle says itself how each of its models is typed.",
            "Choose a model with --precision; --fp16 and --int8 are for single ONNX files.",
        )
    for precision in request.precisions or subject.models:
        options = (
            _of_file(request, builder)
            if subject.bundle is None
            else options_for(subject.bundle, precision, builder)
        )
        options = replace(
            options,
            sparse=options.sparse and request.sparse,
            level=request.level,
            workspace_mib=request.workspace_mib,
            hardware=request.hardware,
            timing_cache=request.timing_cache,
        )
        for sm in request.sms or (_sm(subject.bundle, builder),):
            yield precision, replace(options, sm=sm)


def _of_file(request: CompileRequest, builder: EngineBuilder) -> BuildOptions:
    asked = request.fp16 or request.int8
    typings = builder.release.typings
    typing: Typing = "weak" if asked or "strong" not in typings else "strong"
    return BuildOptions(typing=typing, fp16=request.fp16, int8=request.int8, sparse=True)


def _sm(bundle: Bundle | None, builder: EngineBuilder) -> int | None:
    """The compute capability that was not asked for: the bundle's, else that of the GPU here."""
    found = None if bundle is None else sm_of(bundle)
    return builder.sm if found is None else found


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].removesuffix(".") + "."
