"""The rule of depthwise kernels that shrink through learned matrices.

Source: elastic kernel size of Once-for-all (Cai et al., arXiv 1908.09791).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from elastic_export.elastic.rules import Rule, Tensors

__all__ = ["KernelMap"]


@dataclass(frozen=True)
class KernelMap(Rule):
    """A small depthwise kernel made from a larger one, step by step.

    Each step crops the centre of the kernel before it and applies one matrix to the flattened
    taps, the same for every channel: 7 x 7 -> crop 5 x 5 -> 25 x 25 matrix -> crop 3 x 3 -> 9 x 9
    matrix.

    Args:
        source: The stored kernel ``(C, 1, K, K)``.
        channels: How many of its first channels are read.
        steps: The matrix ``(k*k, k*k)`` and the size ``k`` after each step, from large to small.
    """

    source: str
    channels: int
    steps: tuple[tuple[str, int], ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The kernel and the matrices."""
        return (self.source, *(matrix for matrix, _ in self.steps))

    def read(self, tensors: Tensors) -> Tensor:
        """The kernel ``(channels, 1, k, k)`` of the last step.

        The products are taken in float64 and rounded once, so that they are the same on every
        machine; they are too small to cost time.
        """
        stored = tensors[self.source][: self.channels]
        kernel = stored.double()
        for matrix, size in self.steps:
            taps = _centre(kernel, size).reshape(self.channels, size * size)
            product = taps @ tensors[matrix].double().T
            kernel = product.reshape(self.channels, 1, size, size)
        return kernel.to(stored.dtype)

    def support(self, tensors: Tensors) -> dict[str, Tensor]:
        """The first crop of the kernel; of each matrix the rows that the next crop keeps."""
        masks = {
            name: torch.zeros_like(tensors[name], dtype=torch.bool, requires_grad=False)
            for name in self.sources
        }
        _centre(masks[self.source][: self.channels], self.steps[0][1])[...] = True
        after = [size for _, size in self.steps[1:]] + [self.steps[-1][1]]
        for (matrix, size), kept in zip(self.steps, after, strict=True):
            rows = torch.zeros(size, size, dtype=torch.bool, device=masks[matrix].device)
            _centre(rows, kept)[...] = True
            masks[matrix][rows.reshape(-1)] = True
        return masks

    def write_back(self, tensors: Tensors, value: Tensor) -> None:
        """Refuse: the product of the matrices cannot be undone, and only buffers are written."""
        raise TypeError("a transformed kernel cannot be written back")


def _centre(kernel: Tensor, size: int) -> Tensor:
    margin = (kernel.shape[-1] - size) // 2
    return kernel[..., margin : margin + size, margin : margin + size]
