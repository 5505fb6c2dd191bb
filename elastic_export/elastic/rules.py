"""Slice rules: how one tensor of a plain module is cut from the supernet's tensors.

A rule has a ``read``, the ``support`` of its gradient, and, for a buffer that training writes, a
``write_back``. A rule that ``is_view`` shares the store's memory, so that in-place updates land
there by themselves and ``write_back`` has nothing to do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from elastic_export.sparsity.patterns import pattern_mask

__all__ = ["CentreCrop", "Constant", "GroupPrefix", "Index", "Masked", "Prefix", "Rule"]

Tensors = Mapping[str, Tensor]


class Rule(ABC):
    """How one parameter or buffer is obtained.

    Attributes:
        is_view: Whether :meth:`read` returns memory shared with the store.
    """

    is_view = False

    @property
    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """Names of the store's tensors that are read."""

    @abstractmethod
    def read(self, tensors: Tensors) -> Tensor:
        """Cut the tensor out; differentiable with respect to the sources."""

    @abstractmethod
    def support(self, tensors: Tensors) -> dict[str, Tensor]:
        """For each source a bool tensor of its shape: where a gradient may land."""

    @abstractmethod
    def write_back(self, tensors: Tensors, value: Tensor) -> None:
        """Store ``value``, of the shape :meth:`read` returns, where it was read from."""


@dataclass(frozen=True)
class Selection(Rule):
    """A rule that picks elements of one source without changing them.

    Subclasses say which, by cutting any tensor of the source's shape in :meth:`cut`. Support and
    ``write_back`` follow from it, so they cannot disagree with ``read``.
    """

    source: str

    @property
    def sources(self) -> tuple[str, ...]:
        """The one source."""
        return (self.source,)

    @abstractmethod
    def cut(self, tensor: Tensor) -> Tensor:
        """Pick the elements of a tensor that has the source's shape."""

    def read(self, tensors: Tensors) -> Tensor:
        """Pick the elements of the source."""
        return self.cut(tensors[self.source])

    def _positions(self, tensor: Tensor) -> Tensor:
        numbers = torch.arange(tensor.numel(), device=tensor.device).reshape(tensor.shape)
        return self.cut(numbers).reshape(-1)

    def support(self, tensors: Tensors) -> dict[str, Tensor]:
        """True at the picked elements."""
        tensor = tensors[self.source]
        mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
        mask[self._positions(tensor)] = True
        return {self.source: mask.reshape(tensor.shape)}

    def write_back(self, tensors: Tensors, value: Tensor) -> None:
        """Put the values back at the elements they were picked from."""
        tensor = tensors[self.source]
        with torch.no_grad():
            tensor.view(-1)[self._positions(tensor)] = value.reshape(-1).to(tensor.dtype)


@dataclass(frozen=True)
class View(Selection):
    """A selection that shares the source's memory."""

    is_view = True

    def write_back(self, tensors: Tensors, value: Tensor) -> None:
        """Do nothing where the value is the view itself, else copy it in."""
        with torch.no_grad():
            view = self.cut(tensors[self.source])
            if view.data_ptr() != value.data_ptr():
                view.copy_(value)


@dataclass(frozen=True)
class Prefix(View):
    """The first ``shape[i]`` entries along each dimension."""

    shape: tuple[int, ...]

    def cut(self, tensor: Tensor) -> Tensor:
        """Narrow each dimension that is not taken whole."""
        for dim, size in enumerate(self.shape):
            if size != tensor.shape[dim]:
                tensor = tensor.narrow(dim, 0, size)
        return tensor


@dataclass(frozen=True)
class GroupPrefix(Selection):
    """A prefix within each of ``blocks[i]`` equal parts of dimension ``i``.

    The packed ``qkv`` weight has three blocks of rows: a descendant with two of four heads takes
    the first half of q, of k and of v. A dimension with one block gives a plain prefix.
    """

    shape: tuple[int, ...]
    blocks: tuple[int, ...]

    def cut(self, tensor: Tensor) -> Tensor:
        """Split each dimension into blocks, take the prefix of each, join them again."""
        whole: list[int] = []
        part: list[int] = []
        for size, wanted, blocks in zip(tensor.shape, self.shape, self.blocks, strict=True):
            whole += [blocks, size // blocks]
            part += [blocks, wanted // blocks]
        inner = Prefix(self.source, tuple(part))
        return inner.cut(tensor.reshape(whole)).reshape(self.shape)


@dataclass(frozen=True)
class CentreCrop(View):
    """The central ``size`` x ``size`` taps of a depthwise kernel ``(C, 1, K, K)``, first channels.

    Source: the kernel rule of ElasticViT and AttentiveNAS.
    """

    channels: int
    size: int

    def cut(self, tensor: Tensor) -> Tensor:
        """Narrow the channels and crop both kernel axes."""
        margin = (tensor.shape[-1] - self.size) // 2
        end = margin + self.size
        return tensor[: self.channels, ..., margin:end, margin:end]


@dataclass(frozen=True)
class Index(Selection):
    """Given entries of each dimension, in the given order; each at most once.

    Args:
        entries: For each dimension the entries, a number for that long a prefix, or None for all.
            Packed rows that begin at offsets and rows that are taken in strides are such lists.
    """

    entries: tuple[tuple[int, ...] | int | None, ...]

    def __post_init__(self) -> None:
        for picked in self.entries:
            if isinstance(picked, tuple) and len(set(picked)) != len(picked):
                raise ValueError("an entry is picked twice, so it could not be written back")

    def cut(self, tensor: Tensor) -> Tensor:
        """Select the entries."""
        for dim, picked in enumerate(self.entries):
            if isinstance(picked, int):
                tensor = tensor.narrow(dim, 0, picked)
            elif picked is not None:
                tensor = tensor.index_select(dim, torch.tensor(picked, device=tensor.device))
        return tensor


@dataclass(frozen=True)
class Masked(Rule):
    """An N:M magnitude mask over what another rule reads.

    The mask is found anew at each read, from the values as they are; gradients reach the kept
    values only (ELSA's supernet, arXiv 2409.09708).
    """

    inner: Rule
    pattern: str

    @property
    def sources(self) -> tuple[str, ...]:
        """The inner rule's sources."""
        return self.inner.sources

    def read(self, tensors: Tensors) -> Tensor:
        """Multiply what the inner rule reads by its mask."""
        value = self.inner.read(tensors)
        return value * pattern_mask(value, self.pattern)

    def support(self, tensors: Tensors) -> dict[str, Tensor]:
        """The inner rule's support, without what the mask removes."""
        marks = {
            name: torch.zeros_like(tensors[name], dtype=torch.int8) for name in self.inner.sources
        }
        kept = pattern_mask(self.inner.read(tensors), self.pattern)
        self.inner.write_back(marks, kept.to(torch.int8))
        return {name: mark.bool() for name, mark in marks.items()}

    def write_back(self, tensors: Tensors, value: Tensor) -> None:
        """Refuse: a masked value is a weight, and only buffers are written back."""
        raise TypeError("a masked weight cannot be written back")


@dataclass(frozen=True)
class Constant(Rule):
    """A tensor that depends on the spec alone, such as an index table."""

    value: Tensor

    @property
    def sources(self) -> tuple[str, ...]:
        """No source."""
        return ()

    def read(self, tensors: Tensors) -> Tensor:
        """Return the constant."""
        return self.value

    def support(self, tensors: Tensors) -> dict[str, Tensor]:
        """Nothing learns."""
        return {}

    def write_back(self, tensors: Tensors, value: Tensor) -> None:
        """Refuse: a constant is not trained."""
        raise TypeError("a constant cannot be written back")
