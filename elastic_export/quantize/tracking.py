"""Watches a forward pass: which layer made a tensor, which products form an attention.

A ``TorchFunctionMode`` (https://docs.pytorch.org/docs/stable/torch.overrides.html) sees every torch
function outside the quantizable layers, whatever the network calls its parts. Calibration takes
ranges with it, and the rounded reference network rounds with it, so both mean the same tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Fused", "Operand", "Product", "Tracker"]

ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
PRODUCTS = frozenset({"matmul", "__matmul__", "bmm"})
MULTIPLICATIONS = frozenset({"mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__"})
DIVISIONS = frozenset({"div", "div_", "divide", "true_divide", "__truediv__", "__itruediv__"})
IN_PLACE = frozenset({"add_", "__iadd__", "mul_", "__imul__", "div_", "__itruediv__"})
FUSED = "scaled_dot_product_attention"

MOVES = frozenset(
    {"__getitem__", "chunk", "clone", "contiguous", "detach", "dropout", "expand", "flatten"}
    | {"float", "movedim", "permute", "reshape", "roll", "split", "squeeze", "swapaxes", "swapdims"}
    | {"t", "to", "transpose", "type_as", "unbind", "unflatten", "unsqueeze", "view", "view_as"}
)
"""Functions whose results hold values of their first argument and no others (in eval mode)."""


@dataclass(frozen=True)
class Operand:
    """An operand of a product: a tensor that is ``factor`` times an unscaled one."""

    tensor: Tensor
    factor: float


@dataclass(frozen=True)
class Product:
    """The first product of an attention: ``query @ key`` with the key transposed.

    Args:
        module: Dotted name of the module whose forward computes it.
        query: Left operand.
        key: Right operand, transposed or not: its range is the same.
    """

    module: str
    query: Operand
    key: Operand


@dataclass(frozen=True)
class Fused:
    """An attention in one call, ``softmax(query @ key^T * scale + mask) @ value``.

    ``product`` holds query and key as they are given; ``mask`` is boolean, additive or None.
    """

    product: Product
    value: Tensor
    mask: Tensor | None
    scale: float


@dataclass(frozen=True)
class _Note:
    """What is known of a tensor that depends on the network's input.

    Args:
        depth: The most layers on a way from the input to it.
        maker: The layer whose output it is.
        factor: What its values were multiplied by since they were computed. NaN where that was
            done in place: the exporter writes it as a scatter, behind which no scale is found, so
            such an attention is left alone.
        scores: The product it comes from by element-wise steps, ``size`` values of it.
        probs: The product whose softmax it is.
    """

    depth: int = 0
    maker: str | None = None
    factor: float = 1.0
    scores: Product | None = None
    size: int = 0
    probs: Product | None = None


class Tracker(TorchFunctionMode):
    """Calls its ``on_...`` methods while a network runs; use as a context manager.

    Args:
        module: The network, run in eval mode.
        layers: Its quantizable layers by name; what happens inside them is not looked at.
    """

    def __init__(self, module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._module = module
        self._layers = layers
        self._handles: list[RemovableHandle] = []
        self._stack: list[str] = []
        self._depth_in_layers = 0
        self._batch = 1
        self._notes: Any = WeakTensorKeyDictionary()

    def on_layer(self, name: str, positions: int) -> None:
        """A layer ran on so many positions (tokens, pixels) of each image."""

    def on_addition(self, layer: str, other: Tensor, main: bool) -> Tensor:
        """Return what is added to the output of a layer instead of ``other``, of the same shape.

        Args:
            layer: Its name.
            other: Depends on the input, too.
            main: False where ``other`` is the output of a layer behind more layers: then this
                layer is the shortcut and the other one is the branch.
        """
        return other

    def on_first(self, product: Product) -> tuple[Tensor, Tensor]:
        """Return the operands with which ``query @ key`` is computed."""
        return product.query.tensor, product.key.tensor

    def on_second(self, product: Product, probs: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the operands with which ``probs @ value`` is computed."""
        return probs, value

    def on_fused(self, fused: Fused, run: Callable[[], Tensor]) -> Tensor:
        """Return the result of an attention that is one call; ``run`` computes it as it is."""
        return run()

    def __enter__(self) -> Any:
        """Attach to every module and watch."""
        self._stack.clear()
        self._depth_in_layers = 0
        for name, part in self._module.named_modules():
            inside = name in self._layers
            self._handles += [
                part.register_forward_pre_hook(self._enters(name, inside), with_kwargs=True),
                part.register_forward_hook(self._leaves(name, inside), always_call=True),
            ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Detach and forget the tensors."""
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._notes = WeakTensorKeyDictionary()

    def _enters(self, name: str, layer: bool) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._stack:
                inputs = list(_tensors((*args, *kwargs.values())))
                self._batch = inputs[0].shape[0] if inputs else 1
                for tensor in inputs:
                    self._notes[tensor] = _Note()
            self._stack.append(name)
            self._depth_in_layers += layer

        return hook

    def _leaves(self, name: str, layer: bool) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: object) -> None:
            self._stack.pop()
            self._depth_in_layers -= layer
            if layer and isinstance(out, Tensor) and not self._depth_in_layers:
                self._notes[out] = _Note(depth=_depth(self._known(args)) + 1, maker=name)
                weight = self._layers[name].weight
                assert isinstance(weight, Tensor)
                self.on_layer(name, out.numel() // (self._batch * weight.shape[0]))

        return hook

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and note what it made of which tensor."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._depth_in_layers or not self._stack:
            return func(*args, **kwargs)
        if name == "__get__":
            return self._read(func, *args)
        if name == FUSED:
            return self._run_fused(func, args, kwargs)
        if name in PRODUCTS and len(args) == 2 and not kwargs:
            return self._run_product(func, *args)
        notes = self._known((*args, *kwargs.values()))
        if not notes:
            return func(*args, **kwargs)
        if name in ADDITIONS and len(args) == 2 and not kwargs:
            args = self._see_addition(name, *args)
        note = self._follow(name, args, kwargs, notes)
        size = note.size or (args[0].numel() if args and isinstance(args[0], Tensor) else 0)
        out = func(*args, **kwargs)
        for tensor in _tensors((out,)):
            # A part of a layer's output is not that output; a part of the scores has no softmax.
            whole = tensor.numel() == size
            self._notes[tensor] = note if whole else replace(note, maker=None, scores=None)
        return out

    def _read(self, func: Callable[..., Any], owner: Tensor) -> Any:
        """Read an attribute; those that are tensors (``mT``) hold the values of their owner."""
        found, note = func(owner), self._notes.get(owner)
        if isinstance(found, Tensor) and note is not None:
            self._notes[found] = note
        return found

    def _known(self, values: tuple[Any, ...]) -> list[_Note]:
        found = [self._notes.get(tensor) for tensor in _tensors(values)]
        return [note for note in found if note is not None]

    def _see_addition(self, name: str, first: Any, second: Any) -> tuple[Any, Any]:
        """Return the two operands with which an addition is computed."""
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return first, second
        one, two = self._notes.get(first), self._notes.get(second)
        if first.shape != second.shape or first.ndim < 2 or one is None or two is None:
            return first, second
        both = one.maker is not None and two.maker is not None
        left, right = first, second
        if one.maker is not None:
            right = self.on_addition(one.maker, second, not both or one.depth >= two.depth)
        if two.maker is not None:
            left = self.on_addition(two.maker, first, not both or one.depth < two.depth)
        if left is not first and name in IN_PLACE:
            left = first.copy_(left)
        return left, right

    def _follow(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], notes: list[_Note]
    ) -> _Note:
        """Say what is known of the results of a function, from what is known of its arguments."""
        depth = _depth(notes)
        own = self._notes.get(args[0]) if args and isinstance(args[0], Tensor) else None
        if own is not None and name in MOVES:
            return own
        scores = next((note for note in notes if note.scores is not None), _Note())
        if name == "softmax":
            return _Note(depth, probs=scores.scores if _over_last(args, kwargs) else None)
        factor = None if own is None else self._scalar(name, args)
        if own is not None and factor is not None:
            known = _Note(depth, factor=own.factor * factor)
        else:
            known = _Note(depth)
        return replace(known, scores=scores.scores, size=scores.size)

    def _scalar(self, name: str, args: tuple[Any, ...]) -> float | None:
        """Return the number that a function multiplies its first argument by, if it does that."""
        if len(args) != 2 or name not in MULTIPLICATIONS | DIVISIONS:
            return None
        other = args[1]
        if isinstance(other, Tensor):
            if other.numel() != 1 or other in self._notes:
                return None
            other = float(other)
        if name in IN_PLACE:
            return math.nan
        if name in DIVISIONS:
            return 1 / other if other else None
        return float(other)

    def _run_product(self, func: Callable[..., Tensor], left: Any, right: Any) -> Tensor:
        ours, theirs = self._notes.get(left), self._notes.get(right)
        if ours is None and theirs is None:
            return func(left, right)
        note = _Note(_depth([each for each in (ours, theirs) if each is not None]))
        if ours is not None and theirs is not None and _is_known(ours, theirs):
            if ours.probs is not None:
                left, right = self.on_second(ours.probs, left, right)
            else:
                query, key = Operand(left, ours.factor), Operand(right, theirs.factor)
                product = Product(self._stack[-1], query, key)
                left, right = self.on_first(product)
                note = replace(note, scores=product)
        out = func(left, right)
        self._notes[out] = replace(note, size=out.numel())
        return out

    def _run_fused(
        self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key, value = given["query"], given["key"], given["value"]
        notes = [self._notes.get(tensor) for tensor in (query, key, value)]
        live = [note for note in notes if note is not None]
        special = given.get("is_causal") or given.get("enable_gqa")
        if len(live) < 3 or special or not _is_known(*live[:2]):
            out = func(*args, **kwargs)
        else:
            operands = Operand(query, live[0].factor), Operand(key, live[1].factor)
            scale = given.get("scale")
            fused = Fused(
                Product(self._stack[-1], *operands),
                value,
                given.get("attn_mask"),
                query.shape[-1] ** -0.5 if scale is None else float(scale),
            )
            out = self.on_fused(fused, lambda: func(*args, **kwargs))
        self._notes[out] = _Note(_depth(live))
        return out


def _is_known(*operands: _Note) -> bool:
    return not any(math.isnan(note.factor) for note in operands)


def _depth(notes: list[_Note]) -> int:
    return max((note.depth for note in notes), default=0)


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    """Yield the tensors among arguments or results, also those in tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(tuple(value))


def _over_last(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return dim in (-1, args[0].ndim - 1)
