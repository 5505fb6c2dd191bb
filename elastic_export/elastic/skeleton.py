"""Build plain modules on the meta device without running their initialisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["on_meta"]

_INITIALISERS: frozenset[Callable[..., Any]] = frozenset(
    getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and name[0] != "_"
)


class _SkipInitialisers(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _INITIALISERS:
            return args[0] if args else (kwargs or {}).get("tensor")
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """Create modules on ``meta`` inside this context, their initialisers skipped.

    Only this thread is affected. The tensors have shapes and dtypes but no memory.
    """
    with torch.device("meta"), _SkipInitialisers():
        yield
