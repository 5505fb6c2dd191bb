"""The stack, the memo and the plain values of a pickle machine."""

from __future__ import annotations

import struct
from typing import Any

from elastic_export.checkpoints.pickles.inert import Budget, Opaque, UnreadableError
from elastic_export.checkpoints.pickles.standins import ArrayInMaking, Keys, to_key

__all__ = ["CONTAINER", "DAMAGED", "ITEM", "MARK", "Stack"]

DAMAGED = "is cut off or damaged"
MARK = object()
CONTAINER, ITEM = 200, 60
"""About the bytes that an empty container and a place in one take."""

LONGEST_NUMBER = 256


class Stack:
    """Bytes that are read from the front, and the values made of them.

    Args:
        data: The bytes.
        budget: Charged with what the values take.
    """

    def __init__(self, data: bytes, budget: Budget) -> None:
        self.position = 0
        self._data = data
        self._budget = budget
        self._keys = Keys()
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise UnreadableError(DAMAGED)
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _line(self) -> bytes:
        end = self._data.index(b"\n", self.position)
        taken = self._data[self.position : end]
        self.position = end + 1
        return taken

    def _marked(self) -> list[Any]:
        """Pop everything above the last mark."""
        stack = self._stack
        at = len(stack) - 1
        while stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise UnreadableError(DAMAGED)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is MARK:
            raise UnreadableError(DAMAGED)
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is MARK:
            raise UnreadableError(DAMAGED)
        return value

    # Values

    def _text(self, size: int) -> None:
        self._budget.charge(size)
        self._push(self._take(size).decode("utf-8", "surrogatepass"))

    def _raw(self, size: int) -> None:
        self._budget.charge(size)
        self._push(self._take(size))

    def _old_text(self, data: bytes) -> None:
        """A string of Python 2, which may be text or bytes."""
        self._budget.charge(len(data))
        try:
            self._push(data.decode("utf-8"))
        except UnicodeDecodeError:
            self._push(data.decode("latin-1"))

    def _quoted(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise UnreadableError(DAMAGED)
        self._old_text(line[1:-1].decode("unicode_escape").encode("latin-1"))

    def _long(self, size: int) -> None:
        if not 0 <= size <= LONGEST_NUMBER:
            raise UnreadableError(DAMAGED)
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _decimal(self) -> None:
        line = self._line().rstrip(b"L")
        if len(line) > LONGEST_NUMBER:
            raise UnreadableError(DAMAGED)
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))

    def _tuple(self, size: int) -> None:
        items = tuple(self._stack[-size:])
        if len(items) < size or any(item is MARK for item in items):
            raise UnreadableError(DAMAGED)
        del self._stack[-size:]
        self._push(items)

    def _container(self, made: Any) -> None:
        self._budget.charge(CONTAINER)
        self._push(made)

    def _all(self, kind: type) -> None:
        items = self._marked()
        if kind is dict:
            self._container(dict[Any, Any]())
            self._set_items(items)
            return
        if kind is frozenset:
            self._budget.charge(ITEM * len(items))
            items = [to_key(item, self._keys) for item in items]
        self._container(kind(items))

    # Filling containers

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Opaque):
            return
        if type(target) is not dict or len(items) % 2:
            raise UnreadableError(DAMAGED)
        self._budget.charge(ITEM * len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[to_key(key, self._keys)] = value

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Opaque):
            return
        if type(target) is not list:
            raise UnreadableError(DAMAGED)
        target.extend(items)

    def _add(self) -> None:
        items, target = self._marked(), self._top()
        if isinstance(target, Opaque):
            return
        if type(target) is not set:
            raise UnreadableError(DAMAGED)
        self._budget.charge(ITEM * len(items))
        target.update(to_key(item, self._keys) for item in items)

    # The memo

    def _put(self, index: int) -> None:
        value = self._top()
        self._budget.charge(ITEM)
        self._memo[index] = value
        if isinstance(value, ArrayInMaking):
            value.slots.append(index)
