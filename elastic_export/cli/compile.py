"""``elastic-export compile``: engines built on this machine."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, VerboseOption

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["compile_engines"]


class Runtime(str, Enum):
    """What builds and later runs the engine."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class Hardware(str, Enum):
    """Where else a TensorRT engine may run."""

    NONE = "none"
    AMPERE_PLUS = "ampere-plus"
    SAME = "same-compute-capability"


_HEADERS = (
    "engine",
    "runtime",
    "sm",
    "status",
    "layers",
    "INT8",
    "fused attention",
    "2:4 picked",
    "size",
    "took",
)


def compile_engines(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|FILE.onnx",
            help="A bundle folder, or an ONNX file with static shapes.",
            show_default=False,
        ),
    ],
    runtime: Annotated[
        Runtime | None,
        typer.Option(
            help="What the engine is for; without it what the bundle names, and for a file "
            "TensorRT where it and a GPU are here, else TensorRT-RTX.",
            show_default=False,
        ),
    ] = None,
    sm: Annotated[
        list[int] | None,
        typer.Option(
            metavar="NN",
            help="Compute capability times ten, such as 86; without it that of the bundle's target "
            "or of the GPU here. May be repeated with TensorRT-RTX; TensorRT builds for the GPU "
            "here alone.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="P", help="Of a bundle only this one. May be repeated.", show_default=False
        ),
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="An FP32 file on TensorRT up to 10: allow FP16.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="A file with Q/DQ on TensorRT up to 10: allow INT8.")
    ] = False,
    level: Annotated[
        int | None,
        typer.Option(
            min=0, max=5, help="Optimisation level, 0 builds fastest.", show_default=False
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="MIB", help="Most scratch memory of a kernel.", show_default=False
        ),
    ] = None,
    hardware: Annotated[
        Hardware, typer.Option(help="Other GPUs the engine should run on.")
    ] = Hardware.NONE,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Kernel timings that builds share; without it a file beside the engines.",
            show_default=False,
        ),
    ] = None,
    no_sparse: Annotated[
        bool, typer.Option("--no-sparse", help="Do not let the builder try 2:4 kernels.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Where engines go; without it BUNDLE.engine beside the bundle, or the folder of "
            "the file.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Build engines again that are there.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Build engines with TensorRT or TensorRT-RTX on this machine.

    TensorRT-RTX builds for other GPUs, without one. "Accepted" means that the builder took the
    graph: which kernels run, sparse and INT8 included, is only known where the engine is loaded.
    Engines of the same file, version and options are taken as they are.
    """
    with command(as_json, quiet, verbose) as output:
        output.kept = "Engines that were finished are kept; the same command goes on from there."
        with output.task("Loading the builder"):
            from elastic_export import pipeline
            from elastic_export.pipeline import CompileRequest

        request = CompileRequest(
            runtime=None if runtime is None else runtime.value,
            sms=tuple(dict.fromkeys(sm or ())),
            precisions=tuple(dict.fromkeys(precision or ())),
            fp16=fp16,
            int8=int8,
            sparse=not no_sparse,
            level=level,
            workspace_mib=workspace,
            hardware=hardware.value.replace("-", "_"),
            timing_cache=timing_cache,
            out=out,
            fresh=fresh,
        )
        found = pipeline.compile_here(path, request, progress=output.progress)
        files = "\n".join(engine["file"] for engine in found["engines"])
        output.result(found, _tables(found), short=files)


def _tables(found: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    from elastic_export.cli.tables import table, titled

    rows = [_row(engine) for engine in found["engines"]]
    folders = list(dict.fromkeys(str(Path(engine["file"]).parent) for engine in found["engines"]))
    title = f"Engines of {found['runtime']} {found['version']} in {', '.join(folders)}"
    notes = [f"Note: {note}" for note in found["notes"]]
    return Group(titled(title, table(_HEADERS, rows)), *notes)


def _row(engine: dict[str, Any]) -> list[object]:
    from elastic_export.cli.tables import size
    from elastic_export.report.units import seconds

    return [
        Path(engine["file"]).name,
        f"{engine['runtime']} {engine['version']}",
        engine["sm"],
        engine["status"],
        engine["layers"],
        engine.get("int8_layers"),
        engine.get("fused_attention"),
        _sparse(engine),
        size(engine["bytes"]),
        f"{seconds(engine['seconds'])}{', kept' if engine['reused'] else ''}",
    ]


def _sparse(engine: dict[str, Any]) -> str | None:
    """Say how many layers run 2:4 kernels, where the builder told it; never guess."""
    eligible, picked = (engine.get(f"{word}_sparse") for word in ("eligible", "picked"))
    return None if eligible is None else f"{len(picked or ())} of {len(eligible)}"
