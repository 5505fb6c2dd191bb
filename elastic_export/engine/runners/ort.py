"""ONNX files in ONNX Runtime, on the CPU, with CUDA, or through its TensorRT provider."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from elastic_export.artifacts.disk import explained
from elastic_export.errors import CheckFailed, UserError

__all__ = ["OrtRunner", "ProviderName", "TensorrtOptions", "session_options"]

ProviderName = Literal["cpu", "cuda", "tensorrt"]

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
}
_QUIET = 3
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_PROVIDERS: dict[ProviderName, tuple[str, ...]] = {
    "cpu": (_CPU,),
    "cuda": (_CUDA,),
    # What TensorRT does not take goes to CUDA, never to the CPU.
    "tensorrt": ("TensorrtExecutionProvider", _CUDA),
}
_GPU_PACKAGE = "pip uninstall onnxruntime && pip install onnxruntime-gpu"
_INSTALL: dict[ProviderName, str] = {
    "cpu": "Install it again: pip install onnxruntime.",
    "cuda": f"Install the package for GPUs instead: {_GPU_PACKAGE}.",
    "tensorrt": f"Install TensorRT, and the package for GPUs instead: {_GPU_PACKAGE}.",
}


@dataclass(frozen=True)
class TensorrtOptions:
    """What ONNX Runtime's TensorRT provider is told.

    Source: onnxruntime.ai, TensorRT execution provider. With neither ``fp16`` nor ``int8`` it types
    the network strongly on TensorRT 10, so they are for files in FP32 (flavour ``ort-trt``) alone.

    Args:
        cache: Folder for engines and kernel timings; without it every session builds anew.
        fp16: Let TensorRT run an FP32 file in FP16.
        int8: Let it run Q/DQ in INT8.
        sparse: Let it time 2:4 kernels against dense ones.
        level: Optimisation level, 0 to 5; None leaves the provider's default.
        workspace_mib: Most scratch memory of a kernel, in MiB; None leaves the provider's default.
    """

    cache: Path | None = None
    fp16: bool = False
    int8: bool = False
    sparse: bool = False
    level: int | None = None
    workspace_mib: int | None = None

    def to_provider(self) -> dict[str, str]:
        """Write them as the provider reads them."""
        found = {
            "trt_fp16_enable": str(int(self.fp16)),
            "trt_int8_enable": str(int(self.int8)),
            "trt_sparsity_enable": str(int(self.sparse)),
        }
        if self.cache is not None:
            folder = str(self.cache)
            found |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
            found |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
        if self.level is not None:
            found["trt_builder_optimization_level"] = str(self.level)
        if self.workspace_mib is not None:
            found["trt_max_workspace_size"] = str(self.workspace_mib << 20)
        return found


class OrtRunner:
    """An ONNX file in ONNX Runtime.

    The optimised graph runs one operator after the other. The threads of a session sleep between
    runs instead of spinning: idle sessions would otherwise take the cores that another candidate
    is being timed on (with one thread there is nothing to spin).

    On a GPU nothing falls back to the CPU: a session that would put nodes there is refused.

    Args:
        path: The ONNX file.
        threads: Threads inside one operator.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        options: What the TensorRT provider is told.

    Raises:
        UserError: the provider is not there, the file is missing, is not ONNX, or holds a graph
            ONNX Runtime cannot run.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        threads: int = 1,
        provider: ProviderName = "cpu",
        options: TensorrtOptions | None = None,
    ) -> None:
        if options is not None and provider != "tensorrt":
            raise ValueError("these options are for the TensorRT provider")
        suffix = "" if provider == "cpu" else f" with {provider.replace('tensorrt', 'TensorRT')}"
        self.name = f"ONNX Runtime {ort.__version__}{suffix.replace('cuda', 'CUDA')}"
        self.path = Path(path)
        self._provider = provider
        self._threads = threads
        self._options = options or TensorrtOptions()
        if not self.path.is_file():
            raise UserError(
                f"There is no ONNX file at {self.path}.", "Check the path, or export it first."
            )
        self._session = self._open()
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
            CheckFailed: it fails while it runs.
        """
        self._check(x)
        try:
            result: NDArray[Any] = self._session.run(self._outputs, {self._input.name: x})[0]
        except Exception as error:  # its errors share no base below Exception
            raise CheckFailed(
                f"{self.name} loads {self.path} and cannot run it: "
                f"{str(error).splitlines()[0].removesuffix('.')}.",
                "Export it again; on a GPU, check that its memory is free.",
            ) from error
        return result

    def describe(self) -> dict[str, Any]:
        """Say what runs: the providers are those that the session has, not those asked for."""
        found: dict[str, Any] = {
            "runner": "ONNX Runtime",
            "version": ort.__version__,
            "device": "cpu" if self._provider == "cpu" else "cuda",
            "providers": self._session.get_providers(),
            "threads": self._threads,
            "input": self._input.type,
        }
        if self._provider == "tensorrt":
            found["options"] = self._options.to_provider()
        return found

    def _open(self) -> ort.InferenceSession:
        wanted = _PROVIDERS[self._provider]
        here = ort.get_available_providers()
        missing = [name for name in wanted if name not in here]
        if missing:
            raise UserError(
                f"This ONNX Runtime {ort.__version__} has no {missing[0]} (it has: "
                f"{', '.join(here)}).",
                _INSTALL[self._provider],
            )
        options = session_options(self._threads)
        if self._provider != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        told: list[Any] = list(wanted)
        if self._provider == "tensorrt":
            if self._options.cache is not None:
                with explained(self._options.cache.parent):
                    self._options.cache.mkdir(parents=True, exist_ok=True)
            told[0] = (wanted[0], self._options.to_provider())
        try:
            session = ort.InferenceSession(str(self.path), options, providers=told)
        except Exception as error:  # its errors share no base below Exception
            raise self._unusable(error) from error
        used = session.get_providers()
        if wanted[0] not in used:
            raise UserError(
                f"ONNX Runtime has {wanted[0]} but could not start it; it would use {used[0]}.",
                "Check that the driver, CUDA and cuDNN are those this version of it needs.",
            )
        return session

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
        remedy = "Export it again for this version, or update onnxruntime."
        if self._provider != "cpu":
            remedy = "Check that driver, CUDA and cuDNN are those it needs, or run on the CPU."
        return UserError(
            f"{self.name} cannot load {self.path}: {reason.removesuffix('.')}.", remedy
        )


def session_options(threads: int) -> ort.SessionOptions:
    """Options that every session on this machine has, measured or profiled (see `OrtRunner`)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _QUIET
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
