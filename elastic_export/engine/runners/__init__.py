"""Runners: what executes a network on this machine, NumPy in and NumPy out."""

from __future__ import annotations

from elastic_export.engine.runners.engine_file import TensorrtRunner
from elastic_export.engine.runners.ort import OrtRunner, TensorrtOptions, session_options
from elastic_export.engine.runners.protocol import Runner
from elastic_export.engine.runners.torch_module import TorchRunner

__all__ = [
    "OrtRunner",
    "Runner",
    "TensorrtOptions",
    "TensorrtRunner",
    "TorchRunner",
    "session_options",
]
