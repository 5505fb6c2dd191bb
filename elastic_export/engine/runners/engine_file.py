"""Engines of TensorRT and TensorRT-RTX, where the module and a GPU are present."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from elastic_export.engine.adapters.releases import TITLES, RuntimeName
from elastic_export.engine.builder import EngineBuilder
from elastic_export.errors import CheckFailed, UserError

__all__ = ["TensorrtRunner"]


@dataclass(frozen=True)
class _Tensor:
    """An input or output of an engine, and its memory on the device."""

    name: str
    is_input: bool
    memory: torch.Tensor


class TensorrtRunner:
    """An engine that fits this machine.

    Args:
        engine: The engine; the file that says where it fits must lie beside it.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        builder: The runtime's module, where it is not the installed one.
        device: Where torch keeps inputs and outputs.

    Raises:
        UserError: The module or a GPU is missing, or the engine is for another runtime, version or
            GPU, or nothing tells where it fits.
        CheckFailed: The engine was changed.
    """

    def __init__(
        self,
        engine: Path,
        *,
        runtime: RuntimeName = "tensorrt",
        builder: EngineBuilder | None = None,
        device: str = "cuda",
    ) -> None:
        builder = builder or EngineBuilder(runtime)
        self.name = f"{TITLES[builder.runtime]} {builder.version}"
        self.path = engine
        self._builder = builder
        self._engine, self._runtime = builder.load(engine)
        self._context = self._engine.create_execution_context()
        self._device = torch.device(device)
        self._tensors = self._named() if builder.release.named_tensors else self._numbered()
        inputs = [each for each in self._tensors if each.is_input]
        if len(inputs) != 1 or len(self._tensors) < 2:
            raise UserError(
                f"{engine} takes {len(inputs)} inputs, but a vision network takes one.",
                "Export the network with its image as the only input.",
            )
        self._input = inputs[0]
        self._output = next(each for each in self._tensors if not each.is_input)

    def run(self, x: NDArray[Any]) -> NDArray[Any]:
        """Run one batch and return the first output.

        Raises:
            UserError: Shape or type of ``x`` is not what the engine takes.
            CheckFailed: The engine fails.
        """
        memory = self._input.memory
        given = torch.from_numpy(np.ascontiguousarray(x))
        if given.shape != memory.shape or given.dtype != memory.dtype:
            raise UserError(
                f"{self.path.name} takes {memory.dtype} of shape {list(memory.shape)}, but got "
                f"{x.dtype} of shape {list(x.shape)}.",
                "Give images of that size, channels and batch, or build an engine for these.",
            )
        memory.copy_(given)
        if not self._execute():
            raise CheckFailed(
                f"{self.name} could not run {self.path.name}.",
                "Look at the messages of the GPU's driver (dmesg), then build the engine again.",
            )
        result: NDArray[Any] = self._output.memory.cpu().numpy().copy()
        return result

    def describe(self) -> dict[str, Any]:
        """Say what runs."""
        return {
            "runner": TITLES[self._builder.runtime],
            "version": self._builder.version,
            "device": f"sm_{self._builder.sm}",
            "input": str(self._input.memory.dtype).removeprefix("torch."),
        }

    def _execute(self) -> bool:
        cuda = self._device.type == "cuda"
        stream = torch.cuda.current_stream() if cuda else None
        handle = stream.cuda_stream if stream is not None else 0
        if self._builder.release.named_tensors:
            good = self._context.execute_async_v3(handle)
        else:
            addresses = [each.memory.data_ptr() for each in self._tensors]
            good = self._context.execute_async_v2(addresses, handle)
        if stream is not None:
            stream.synchronize()
        return bool(good)

    def _named(self) -> list[_Tensor]:
        engine, inputs = self._engine, self._builder.trt.TensorIOMode.INPUT
        found = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            tensor = _Tensor(
                name,
                engine.get_tensor_mode(name) == inputs,
                self._memory(engine.get_tensor_shape(name), engine.get_tensor_dtype(name)),
            )
            self._context.set_tensor_address(name, tensor.memory.data_ptr())
            found.append(tensor)
        return found

    def _numbered(self) -> list[_Tensor]:
        engine = self._engine
        return [
            _Tensor(
                engine.get_binding_name(index),
                bool(engine.binding_is_input(index)),
                self._memory(engine.get_binding_shape(index), engine.get_binding_dtype(index)),
            )
            for index in range(engine.num_bindings)
        ]

    def _memory(self, shape: Any, dtype: Any) -> torch.Tensor:
        kind = np.dtype(self._builder.trt.nptype(dtype))
        like = torch.from_numpy(np.empty(0, kind)).dtype
        return torch.zeros([int(size) for size in shape], dtype=like, device=self._device)
