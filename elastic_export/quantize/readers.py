"""Finds what reads the output of each LayerNorm, from how the tensors flow and not from names.

One forward pass runs under a ``TorchFunctionMode``. Beside every LayerNorm output goes a *shadow*,
a tensor of its shape that holds the number of the channel; every movement (reshape, roll, window
partition, ...) is applied to both. A ``Linear`` that finds the channel numbers in order along its
input features reads the LayerNorm channel by channel; anything else that touches the output is
another reader, by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from elastic_export.quantize.batches import forward_batch
from elastic_export.quantize.tracking import MOVES

__all__ = ["Readers", "find_readers", "functions_of"]

_MOVES = MOVES | {"pad"}
_METADATA = frozenset(
    {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "__len__"}
    | {"is_floating_point", "element_size", "get_device", "is_complex"}
    | {"new_empty", "new_full", "new_ones", "new_zeros", "empty_like", "ones_like", "zeros_like"}
)
"""Functions that do not look at values."""


@dataclass
class Readers:
    """What reads a LayerNorm.

    Args:
        linears: Names of the ``Linear`` layers that read all its channels, each in its place.
        others: What else reads it, as torch calls it.
    """

    linears: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def find_readers(module: nn.Module, x: Tensor) -> dict[str, Readers]:
    """Run a network once and tell what reads each of its LayerNorms.

    A ``Linear`` that at any time reads something else as well is an other reader, and so is one
    whose weight something else reads, because its columns cannot be scaled for one of them alone.

    Args:
        module: In eval mode; what it computes is not changed.
        x: Images (B, C, H, W) float32; few are enough.

    Returns:
        LayerNorm name to its readers, in the order in which they ran.
    """
    watch = _Watch(module)
    with torch.no_grad(), watch:
        forward_batch(module, x)
    for name, sources in watch.sources.items():
        mixed = len(sources) > 1 or name in watch.odd
        for source in sources:
            if source is not None:
                readers = watch.found[source]
                (readers.others if mixed else readers.linears).append(name)
    return watch.found


def functions_of(module: nn.Module, kind: type[nn.Module]) -> dict[int, str]:
    """Return the identity of the weight of every module of a kind, and the module's name."""
    found: dict[int, str] = {}
    for name, part in module.named_modules():
        if isinstance(part, kind) and isinstance(part.weight, Tensor):
            found[id(part.weight)] = name
    return found


class _Watch(TorchFunctionMode):
    """Follows LayerNorm outputs through a forward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.found: dict[str, Readers] = {}
        self.sources: dict[str, set[str | None]] = {}
        self.odd: set[str] = set()
        self._norms = functions_of(module, nn.LayerNorm)
        self._linears = functions_of(module, nn.Linear)
        self._shadows: Any = WeakTensorKeyDictionary()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and let the shadows of its arguments follow."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = list(_tensors((args, kwargs)))
        out = func(*args, **kwargs)
        if name == "layer_norm":
            self._see_norm(out, given)
        elif name == "linear":
            self._see_linear(args, kwargs)
        elif not self._is_metadata(name, out):
            self._see_other(func, name, args, kwargs, out)
        return out

    def _is_metadata(self, name: str, out: object) -> bool:
        return name in _METADATA or (name == "__get__" and not any(_tensors((out,))))

    def _see_norm(self, out: Tensor, given: list[Tensor]) -> None:
        self._read_by(given[:1], "layer_norm")
        norm = next((self._norms[id(each)] for each in given if id(each) in self._norms), None)
        if norm is not None:
            self.found.setdefault(norm, Readers())
            self._shadows[out] = norm, _numbered(out), out.shape[-1]

    def _see_linear(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, weight = (*args, *(kwargs[key] for key in ("input", "weight") if key in kwargs))[:2]
        linear = self._linears.get(id(weight))
        source, *shadow = self._shadows.get(x, (None,))
        if linear is None:
            self._read_by([x], "linear")
            return
        if source is not None and not _in_order(*shadow):
            self._read_by([x], linear)
            source = None
        self.sources.setdefault(linear, set()).add(source)

    def _see_other(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: object,
    ) -> None:
        given = list(_tensors((args, kwargs)))
        self.odd |= {self._linears[id(each)] for each in given if id(each) in self._linears}
        for each in given:
            if id(each) in self._norms:
                self._note(self._norms[id(each)], name)
        first = args[0] if args else None
        known = self._shadows.get(first) if isinstance(first, Tensor) else None
        if known is None or name not in _MOVES:
            self._read_by(given, name)
            return
        self._read_by([each for each in given if each is not first], name)
        source, shadow, channels = known
        moved = func(shadow, *args[1:], **kwargs)
        for tensor, its in zip(_tensors((out,)), _tensors((moved,)), strict=True):
            self._shadows[tensor] = source, its, channels

    def _read_by(self, tensors: list[Tensor], reader: str) -> None:
        for tensor in tensors:
            if tensor in self._shadows:
                self._note(self._shadows[tensor][0], reader)

    def _note(self, norm: str, reader: str) -> None:
        others = self.found.setdefault(norm, Readers()).others
        if reader not in others:
            others.append(reader)


def _numbered(out: Tensor) -> Tensor:
    """Number the channels from 1, so that the 0 of a padding is none of them."""
    channels = out.shape[-1]
    numbers = torch.arange(1, channels + 1, dtype=torch.float32, device=out.device)
    return numbers.expand(out.shape)


def _in_order(shadow: Tensor, channels: int) -> bool:
    numbers = _numbered(shadow)
    return shadow.shape[-1] == channels and bool(((shadow == numbers) | (shadow == 0)).all())


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
