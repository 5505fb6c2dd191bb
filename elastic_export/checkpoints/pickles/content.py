"""Whether what a file describes stays within what the file holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from elastic_export.checkpoints.pickles.inert import UnreadableError, printable

__all__ = ["check_content"]

REPEATS = 8
"""How many times its own size a file may hold in tensors that share their values."""

_LONGEST_KEY = 1000
_DEEPEST = 100
_MOST_VALUES = 1 << 24
_OPEN = -1


def check_content(content: Any, size: int) -> None:
    """Refuse what costs more than the file's size, and names that are not fit to print.

    Tensors that share or repeat their values cost no bytes in a file, but do where they are copied;
    the same holds for containers that are in several places, and in those that hold themselves
    a walk would not end.

    Args:
        content: What a file holds.
        size: Of the file, in bytes.

    Raises:
        UnreadableError: It is more than can be worked with.
    """
    total = 0
    for name, value in _walk(content):
        if not isinstance(value, Tensor):
            continue
        claimed = value.numel() * value.element_size()
        total += claimed
        if claimed > size or total > REPEATS * size:
            raise UnreadableError(
                f'holds a tensor "{_path(name)}" that claims {claimed} bytes, but the file has '
                f"{size}",
                "Do not use this file, or save it again with contiguous tensors.",
            )


_Name = tuple[Any, Any]  # of the parent, and the key or index in it


def _path(name: _Name | None) -> str:
    parts: list[str] = []
    while name is not None:
        parts.append(printable(str(name[1])))
        name = name[0]
    return ".".join(reversed(parts))


def _walk(content: Any) -> Iterator[tuple[_Name | None, Any]]:
    """Yield every value that is no container; each container is visited once.

    On the way up, the values that each container has in all are counted, those in shared
    containers as often as they are reached.
    """
    counts: dict[int, int] = {}
    stack: list[tuple[_Name | None, Any, int]] = [(None, content, 0)]
    while stack:
        name, value, depth = stack.pop()
        if depth < 0:
            counts[id(value)] = count = 1 + sum(counts.get(id(v), 1) for v in _children(value))
            if count > _MOST_VALUES:
                raise UnreadableError("describes more objects than a checkpoint has any use for")
            continue
        if not isinstance(value, (dict, list, tuple, set, frozenset)):
            yield name, value
            continue
        if id(value) in counts:
            if counts[id(value)] == _OPEN:
                raise UnreadableError("holds a container that holds itself")
            continue
        if depth > _DEEPEST:
            raise UnreadableError(f"nests its containers more than {_DEEPEST} deep")
        counts[id(value)] = _OPEN
        stack.append((None, value, -1))
        if isinstance(value, dict):
            _check_keys(value)
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        stack.extend(((name, key), item, depth + 1) for key, item in items)


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _check_keys(value: dict[Any, Any]) -> None:
    for key in value:
        if isinstance(key, str) and (len(key) > _LONGEST_KEY or not key.isprintable()):
            raise UnreadableError(
                f'holds a name that is not fit to print: "{printable(key)}"',
                "Do not use this file, or rename what is in it.",
            )
