"""Engines kept beside what they were built from, so that none is built twice.

A bundle's files stay as they were checked, so its engines go into ``BUNDLE.engine`` beside it, as
those of the script on the board do; the engine of a single file goes beside the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from elastic_export.artifacts.digest import sha256_file, sha256_json
from elastic_export.engine.builder import BuildOptions, EngineBuilder, EngineReport
from elastic_export.engine.bundle_manifest import is_bundle
from elastic_export.engine.sidecar import EngineHeader, read_header
from elastic_export.errors import ElasticExportError, UserError
from elastic_export.progress import Progress, no_progress

__all__ = ["KeptEngine", "folder_for", "kept_engine", "refuse_inside_bundle"]

_DIGITS = 8
_SHORT = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}


@dataclass(frozen=True)
class KeptEngine:
    """An engine on disk; ``reused`` where it was there already."""

    path: Path
    report: EngineReport
    reused: bool


def folder_for(path: Path) -> Path:
    """Name the folder for engines of a bundle or of an ONNX file.

    Args:
        path: A bundle's folder, or an ONNX file, which may be one of a bundle.
    """
    whole = path.resolve()
    if whole.is_dir():
        return whole.with_name(f"{whole.name}.engine")
    return folder_for(whole.parent) if is_bundle(whole.parent) else whole.parent


def refuse_inside_bundle(folder: Path) -> None:
    """Refuse to write into a bundle: a file more, and it would no longer be whole.

    Raises:
        UserError: ``folder`` is in a bundle or is one.
    """
    whole = folder.resolve()
    for above in (whole, *whole.parents):
        if is_bundle(above):
            raise UserError(
                f"{folder} is part of the bundle {above}, whose files stay as they were checked.",
                "Leave --out away, and the engines go beside the bundle; or name another folder.",
            )


def kept_engine(
    builder: EngineBuilder,
    onnx_path: Path,
    folder: Path,
    options: BuildOptions,
    *,
    also: Iterable[Path] = (),
    fresh: bool = False,
    progress: Progress = no_progress,
) -> KeptEngine:
    """Take the engine that was built of the same file in the same way, or build it.

    Kernel timings are kept in ``folder`` as well, where the release has any and ``options`` name no
    other file.

    Args:
        builder: The runtime's.
        onnx_path: The ONNX file.
        folder: Where engines are kept.
        options: How to build.
        also: Engines elsewhere that may be the one, such as the bundle's own.
        fresh: Build it in any case.
        progress: Told of the build.

    Raises:
        UserError: As `EngineBuilder.build`.
        CheckFailed: As `EngineBuilder.build`.
    """
    sm = builder.target(options)
    wanted = {
        "runtime": builder.runtime,
        "version": builder.version,
        "sm": sm,
        "gpu": builder.gpu,
        "onnx_sha256": sha256_file(onnx_path) if onnx_path.is_file() else "",
        "options": options.asked,
    }
    path = folder / (
        f"{onnx_path.stem}-{sha256_json(wanted)[:_DIGITS]}."
        f"{_SHORT[builder.runtime]}{builder.version}.sm{sm}.engine"
    )
    digest = sha256_json(wanted)
    for there in () if fresh else (path, *also):
        found = _told(there)
        if found is None:
            continue
        header, report = found
        if sha256_json({name: getattr(header, name) for name in wanted}) == digest:
            return KeptEngine(there, report, reused=True)
    if builder.release.timing_cache and options.timing_cache is None:
        own = folder / _timings(builder, sm)
        options = replace(options, timing_cache=own, timings_may_be_new=True)
    if builder.tells_progress:
        return KeptEngine(path, builder.build(onnx_path, path, options, progress), reused=False)
    progress.start(f"build {path.name} for sm_{sm} (minutes)", 0)
    try:
        return KeptEngine(path, builder.build(onnx_path, path, options, progress), reused=False)
    finally:
        progress.finish()


def _told(engine: Path) -> tuple[EngineHeader, EngineReport] | None:
    """Read what lies beside an engine; one that is missing or damaged is built again."""
    try:
        header = read_header(engine)
        return header, EngineReport.of(header)
    except (ElasticExportError, TypeError):  # layers of another form
        return None


def _timings(builder: EngineBuilder, sm: int) -> str:
    """Name the file of timings: they hold for one version and one kind of GPU alone."""
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", builder.gpu).strip("-") or f"sm{sm}"
    return f"timing.{_SHORT[builder.runtime]}{builder.version}.{gpu}.cache"
