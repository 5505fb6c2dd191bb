"""The names of runners, for the command line: nothing heavy is loaded to know them."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["RUNNERS", "RunnerName"]

RunnerName = Literal[
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "torch",
    "torch-cuda",
    "tensorrt",
    "tensorrt-rtx",
]
RUNNERS: tuple[RunnerName, ...] = get_args(RunnerName)
