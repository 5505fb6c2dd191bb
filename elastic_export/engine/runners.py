"""Runners: what executes a network on this machine, NumPy in and NumPy out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from elastic_export.errors import UserError

__all__ = ["OrtRunner", "Runner", "TorchRunner"]

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
}
_QUIET = 3


class Runner(Protocol):
    """Something that executes a network."""

    name: str

    def run(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the logits ``(B, classes)`` of a batch ``(B, C, H, W)``."""


class OrtRunner:
    """An ONNX file in ONNX Runtime on the CPU.

    The optimised graph runs one operator after the other. The threads of a session sleep between
    runs instead of spinning: idle sessions would otherwise take the cores that another candidate
    is being timed on (with one thread there is nothing to spin).

    Args:
        path: The ONNX file.
        threads: Threads inside one operator.

    Raises:
        UserError: the file is missing, is not ONNX, or holds a graph ONNX Runtime cannot run.
    """

    def __init__(self, path: Path | str, *, threads: int = 1) -> None:
        self.name = f"ONNX Runtime {ort.__version__}"
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(
                f"There is no ONNX file at {self.path}.", "Check the path, or export it first."
            )
        try:
            self._session = ort.InferenceSession(
                str(self.path), _options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no base below Exception
            raise self._unusable(error) from error
        (self._input, *others) = self._session.get_inputs()
        if others:
            raise UserError(
                f"{self.path} takes {1 + len(others)} inputs, but a vision network takes one.",
                "Export the network with its image as the only input.",
            )
        self._outputs = [self._session.get_outputs()[0].name]
        self._type = _TYPES.get(self._input.type)

    def run(self, x: NDArray[Any]) -> NDArray[Any]:
        """Run one batch and return the first output.

        Raises:
            UserError: shape or type of ``x`` is not what the graph takes.
        """
        self._check(x)
        result: NDArray[Any] = self._session.run(self._outputs, {self._input.name: x})[0]
        return result

    def _check(self, x: NDArray[Any]) -> None:
        wanted = self._input.shape
        fits = len(wanted) == x.ndim and all(
            not isinstance(size, int) or size == given
            for size, given in zip(wanted, x.shape, strict=True)
        )
        if not fits or (self._type is not None and x.dtype != self._type):
            raise UserError(
                f"{self.path.name} takes {self._input.type} of shape {wanted}, but got "
                f"{x.dtype} of shape {list(x.shape)}.",
                "Give images of that size, channels and batch, or export it for these.",
            )

    def _unusable(self, error: Exception) -> UserError:
        kind = type(error).__name__
        if kind in ("InvalidProtobuf", "InvalidArgument"):
            return UserError(
                f"{self.path} is not a complete ONNX file.", "Export it again, or copy it again."
            )
        reason = str(error).splitlines()[0]
        return UserError(
            f"ONNX Runtime {ort.__version__} cannot load {self.path}: {reason}.",
            "Export it again for this version, or update onnxruntime.",
        )


class TorchRunner:
    """A module in torch on the CPU, without gradients.

    Args:
        module: Moved to evaluation mode.
        threads: Threads torch uses while this runner runs; its setting is put back afterwards.
    """

    def __init__(self, module: nn.Module, *, threads: int = 1) -> None:
        self.name = f"torch {torch.__version__}"
        self._module = module.eval()
        self._threads = threads

    def run(self, x: NDArray[Any]) -> NDArray[Any]:
        """Run one batch and return the logits.

        Raises:
            UserError: the module cannot take a batch of that shape.
        """
        before = torch.get_num_threads()
        if before != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                result: NDArray[Any] = self._module(torch.from_numpy(x)).numpy()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"The module cannot take {x.dtype} of shape {list(x.shape)}: {reason}.",
                "Give images of the size and channels it was built for.",
            ) from error
        finally:
            if before != self._threads:
                torch.set_num_threads(before)
        return result


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _QUIET
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
