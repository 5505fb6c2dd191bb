"""TensorRT-RTX: real engines for Ampere and newer GPUs, built on any machine.

NVIDIA's ``tensorrt-rtx`` package parses ONNX and builds engines ahead of time without a GPU. An
engine of it runs on the TensorRT-RTX runtime only, never on TensorRT. It was accepted by the
builder and has not been run, so nothing is claimed about sparse or INT8 kernels: those are chosen
on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elastic_export.engine.builder import BuildOptions, EngineBuilder, EngineReport, installed
from elastic_export.progress import Progress, no_progress

__all__ = ["EngineReport", "available", "build", "build_all", "supported_sms"]


def available() -> str | None:
    """Return the version of the installed package, or None without it."""
    return installed("tensorrt-rtx")


def supported_sms() -> list[int]:
    """Return the compute capabilities, times ten, that the installed package builds for.

    Raises:
        UserError: The package is not installed.
    """
    return EngineBuilder("tensorrt-rtx").supported_sms()


def build(onnx_path: Path, out: Path, *, sm: int, progress: Progress = no_progress) -> EngineReport:
    """Build an engine from an ONNX file, for one compute capability.

    The network is strongly typed: precisions are those of the graph. Weights that hold 2:4 may be
    run by sparse kernels.

    Args:
        onnx_path: The ONNX file, with static shapes.
        out: Where the engine is written, whole or not at all; ``OUT.json`` says where it fits.
        sm: Compute capability times ten.
        progress: Told of the builder's phases.

    Raises:
        UserError: the package is missing, cannot build for ``sm``, or the file is missing, is not
            ONNX or has dynamic shapes.
        CheckFailed: the parser or the builder refuses the graph; node and message are named.
    """
    options = BuildOptions(sparse=True, sm=sm)
    return EngineBuilder("tensorrt-rtx").build(onnx_path, out, options, progress)


def build_all(
    files: Mapping[str, Path], folder: Path, *, sm: int, progress: Progress = no_progress
) -> dict[str, dict[str, Any]]:
    """Build ``PRECISION.engine`` of several files; arguments and errors as those of `build`.

    Returns:
        Precision to what the builder said.
    """
    return {
        precision: build(path, folder / f"{precision}.engine", sm=sm, progress=progress).to_json()
        for precision, path in files.items()
    }
