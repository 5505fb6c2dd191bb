"""A module in torch, on the CPU or with CUDA."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elastic_export.errors import UserError

__all__ = ["TorchPrecision", "TorchRunner"]

TorchPrecision = Literal["fp32", "autocast", "half"]


SPARSE_ROWS, SPARSE_COLUMNS = 32, 64
"""What FP16 weights of the semi-structured kernels have to be multiples of."""


class TorchRunner:
    """A module in torch, without gradients.

    Args:
        module: Moved to evaluation mode; a copy of it runs where it has to be moved or converted.
        threads: Threads torch uses on the CPU while this runner runs; its setting is put back
            afterwards.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``; ``autocast``: torch chooses FP16 by operator; ``half``: all weights
            and activations are FP16. The logits are FP32 in any case.
        channels_last: Keep images as (B, H, W, C) in memory, which convolutions on a GPU want.
        sparse: Run linear layers that hold 2:4 by torch's semi-structured kernels, which exist for
            FP16 on CUDA from compute capability 8.0 on (``torch.sparse``, PyTorch's documentation
            of semi-structured sparsity). Convolutions and other layers stay dense.

    Raises:
        UserError: CUDA is asked for and not there or its memory is full, or sparse kernels where
            torch has none or the module has no layer for them.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        threads: int = 1,
        device: Literal["cpu", "cuda"] = "cpu",
        precision: TorchPrecision = "fp32",
        channels_last: bool = False,
        sparse: bool = False,
    ) -> None:
        if sparse and (device != "cuda" or precision != "half"):
            raise UserError(
                f"torch has no 2:4 kernels for {precision} on {device}.",
                "Run sparse networks with device cuda and precision half, or dense.",
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                f"torch {torch.__version__} sees no GPU here.",
                "Run on the CPU, or install the driver and a torch build with CUDA.",
            )
        words: list[str] = [] if precision == "fp32" else [precision]
        words += ["CUDA"] if device == "cuda" else []
        self.name = " ".join([f"torch {torch.__version__}", *words])
        self._device = torch.device(device)
        self._precision = precision
        self._threads = threads
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        module = module.eval()
        try:
            if device != "cpu" or precision == "half" or channels_last:
                module = copy.deepcopy(module).to(self._device)
                module = module.to(memory_format=self._format)
            self._module = module.half() if precision == "half" else module
        except torch.OutOfMemoryError as error:
            raise UserError(
                "The GPU has not enough free memory for the module.",
                "End what else runs on it, or measure fewer networks at once.",
            ) from error
        self._sparse_layers = _use_sparse_kernels(self._module) if sparse else 0

    def run(self, x: NDArray[Any]) -> NDArray[Any]:
        """Run one batch and return the logits.

        Raises:
            UserError: the module cannot take a batch of that shape.
        """
        try:
            with _threads(self._threads), torch.inference_mode():
                result: NDArray[Any] = self._forward(torch.from_numpy(x)).cpu().numpy()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"The module cannot take {x.dtype} of shape {list(x.shape)}: {reason}.",
                "Give images of the size and channels it was built for.",
            ) from error
        return result

    def describe(self) -> dict[str, Any]:
        """Say what runs."""
        cuda = self._device.type == "cuda"
        return {
            "runner": "torch",
            "version": torch.__version__,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "precision": self._precision,
            "channels_last": self._format is torch.channels_last,
            "threads": self._threads,
            "sparse_layers": self._sparse_layers,
        }

    def _forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.contiguous(memory_format=self._format)
        x = x.to(self._device, torch.float16 if self._precision == "half" else x.dtype)
        autocast = self._precision == "autocast"
        with torch.autocast(self._device.type, torch.float16, enabled=autocast):
            logits: Tensor = self._module(x)
        return logits if self._precision == "fp32" else logits.float()


def _use_sparse_kernels(module: nn.Module) -> int:
    """Compress the weights that semi-structured kernels take, in place; returns how many.

    Raises:
        UserError: None is 2:4 of a size that the kernels take (multiples of 32 by 64).
    """
    found = 0
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and fits_sparse_kernels(layer.weight):
            packed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
            layer.weight = nn.Parameter(packed, requires_grad=False)
            found += 1
    if not found:
        raise UserError(
            "No linear layer holds 2:4 in a size that sparse kernels take.",
            "Sparsify the network first, and choose widths that are multiples of 64.",
        )
    return found


def fits_sparse_kernels(weight: Tensor) -> bool:
    """Tell whether a weight ``(out, in)`` is 2:4 along ``in`` and of a size the kernels take."""
    rows, columns = weight.shape
    if rows % SPARSE_ROWS or columns % SPARSE_COLUMNS:
        return False
    return bool(((weight.detach().reshape(-1, 4) != 0).sum(dim=1) <= 2).all())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set torch's number of threads for a while."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
