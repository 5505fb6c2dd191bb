"""A pickle machine that makes plain values only.

It knows pickle's instructions but no module: a class or function in a file is a name, calling it
looks the name up in the tables of ``standins``, and whatever is not there becomes an ``Opaque``.
No attribute is read or set, no constructor or ``__setstate__`` of anything in the file is run.
Python's own ``Unpickler`` is not used, because a few bytes make it take any amount of memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from elastic_export.checkpoints.pickles.inert import Budget, Opaque, UnreadableError
from elastic_export.checkpoints.pickles.stack import CONTAINER, DAMAGED, ITEM, MARK, Stack
from elastic_export.checkpoints.pickles.standins import (
    ATTRIBUTES,
    MAPPINGS,
    ArrayInMaking,
    DtypeInMaking,
    call,
    named,
)
from elastic_export.errors import UserError

__all__ = ["Machine"]

_STEP = 32
_STOP = object()
_ERRORS = (
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    UserError,  # what an Opaque raises where a value is needed
)


class Machine(Stack):
    """Reads the pickles of a file one after the other.

    Args:
        data: The bytes they lie in.
        budget: Bounds what they may describe.
        find: Gives the storage that a persistent id names.
    """

    def __init__(self, data: bytes, budget: Budget, find: Callable[[Any], Any]) -> None:
        super().__init__(data, budget)
        self._find = find
        # Records are plain dicts from the start; their kind is only of use for their state.
        self._records: dict[int, tuple[dict[Any, Any], bool]] = {}

    def load(self) -> Any:
        """Read one pickle; the position is behind it then.

        Raises:
            UnreadableError: It is damaged, too large, or names what could only do harm.
        """
        self._stack, self._memo, self._records = [], {}, {}
        steps, data = _STEPS, self._data
        allowed = self._budget.left // _STEP
        count = 0
        try:
            for count in range(1, allowed + 1):  # noqa: B007 - charged at the end
                position = self.position
                self.position = position + 1
                if steps[data[position]](self) is _STOP:
                    return self._stack.pop()
        except _ERRORS as error:
            raise UnreadableError(DAMAGED) from error
        finally:
            self._budget.left -= count * _STEP
        self._budget.charge(_STEP)  # which there is not

    def _global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or len(module) + len(name) > 1000:
            raise UnreadableError(DAMAGED)
        self._budget.charge(CONTAINER + len(module) + len(name))
        self._push(named(module, name))

    def _make(self, maker: Any, args: Any, *, new: bool) -> None:
        """Do what ``maker(*args)`` or ``maker.__new__(maker, *args)`` means."""
        if type(args) is not tuple or not isinstance(maker, Opaque):
            raise UnreadableError(DAMAGED)
        name = maker.class_name
        if name in ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"):
            # (class, base, state), (class, ...) or (class, args, kwargs)
            given = args[2:3] if name.endswith("_reconstructor") else ()
            maker, args, new = args[0], given, True
            name = maker.class_name if isinstance(maker, Opaque) else ""
        self._budget.charge(CONTAINER)
        if maker.kind != "name":
            self._push(Opaque(name))
        elif name in ATTRIBUTES:
            self._push(self._record({}, attributes=True))
        elif name in MAPPINGS:
            given = () if new and (not args or args[0] is None) else args
            made = call(name, given, self._budget, self._keys)
            self._push(self._record(made, attributes=False))
        else:
            self._push(call(name, args, self._budget, self._keys))

    def _record(self, made: dict[Any, Any], *, attributes: bool) -> dict[Any, Any]:
        self._records[id(made)] = (made, attributes)
        return made

    def _instance(self) -> None:
        args = self._marked()
        self._make(args[0], tuple(args[1:]), new=False)

    def _inst(self) -> None:
        args = tuple(self._marked())
        self._global(self._line().decode(), self._line().decode())
        self._make(self._pop(), args, new=False)

    def _reduce(self) -> None:
        args, maker = self._pop(), self._pop()
        self._make(maker, args, new=False)

    def _new(self, *, extended: bool) -> None:
        if extended:
            self._pop()  # keyword arguments
        args, maker = self._pop(), self._pop()
        self._make(maker, args, new=True)

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, ArrayInMaking):
            made = target.build(state, self._budget)
            self._stack[-1] = made
            for index in target.slots:
                if self._memo.get(index) is target:
                    self._memo[index] = made
        elif isinstance(target, DtypeInMaking):
            target.build(state)
        elif isinstance(target, Opaque):
            if isinstance(state, dict) and "_parameters" in state and "_modules" in state:
                target.kind = "network"
        elif id(target) in self._records:
            if self._records[id(target)][1]:
                self._update(target, state)
        else:
            raise UnreadableError(DAMAGED)

    def _update(self, target: dict[Any, Any], state: Any) -> None:
        for part in state if type(state) is tuple else (state,):
            if part is None:
                continue
            if type(part) is not dict or any(type(key) is not str for key in part):
                raise UnreadableError(DAMAGED)
            self._budget.charge(2 * ITEM * len(part))
            target.update(part)

    def _refuse(self) -> None:
        raise UnreadableError("uses a registry of classes, which torch.save never does")


def _global_line(m: Machine) -> None:
    module = m._line().decode()
    m._global(module, m._line().decode())


def _stack_global(m: Machine) -> None:
    name, module = m._pop(), m._pop()
    m._global(module, name)


def _stop(m: Machine) -> object:
    m._top()
    return _STOP


def _drop(m: Machine) -> None:
    m._stack.pop()


def _frame(m: Machine) -> None:
    if m._number("<Q") > len(m._data) - m.position:
        raise UnreadableError(DAMAGED)


def _protocol(m: Machine) -> None:
    if m._number("<B") > 5:
        raise UnreadableError("is of a newer pickle format than is known")


def _pair(m: Machine) -> None:
    value, key = m._pop(), m._pop()
    m._set_items([key, value])


# Instruction byte to what it does; all of protocols 0 to 5.
_CODES: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b".": _stop,
    b"(": lambda m: m._push(MARK),
    b"0": _drop,
    b"1": lambda m: m._marked(),
    b"2": lambda m: m._push(m._top()),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"I": lambda m: m._decimal(),
    b"L": lambda m: m._decimal(),
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._number("<B")),
    b"M": lambda m: m._push(m._number("<H")),
    b"\x8a": lambda m: m._long(m._number("<B")),
    b"\x8b": lambda m: m._long(m._number("<i")),
    b"F": lambda m: m._push(float(m._line()[:100])),
    b"G": lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    b"S": lambda m: m._quoted(),
    b"T": lambda m: m._old_text(m._take(m._number("<I"))),
    b"U": lambda m: m._old_text(m._take(m._number("<B"))),
    b"V": lambda m: m._push(m._line().decode("raw-unicode-escape")),
    b"X": lambda m: m._text(m._number("<I")),
    b"\x8c": lambda m: m._text(m._number("<B")),
    b"\x8d": lambda m: m._text(m._number("<Q")),
    b"B": lambda m: m._raw(m._number("<I")),
    b"C": lambda m: m._raw(m._number("<B")),
    b"\x8e": lambda m: m._raw(m._number("<Q")),
    b"\x96": lambda m: m._raw(m._number("<Q")),
    b")": lambda m: m._push(()),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"t": lambda m: m._all(tuple),
    b"]": lambda m: m._container([]),
    b"l": lambda m: m._all(list),
    b"}": lambda m: m._container({}),
    b"d": lambda m: m._all(dict),
    b"\x8f": lambda m: m._container(set()),
    b"\x91": lambda m: m._all(frozenset),
    b"a": lambda m: m._append([m._pop()]),
    b"e": lambda m: m._append(m._marked()),
    b"s": _pair,
    b"u": lambda m: m._set_items(m._marked()),
    b"\x90": lambda m: m._add(),
    b"p": lambda m: m._put(int(m._line()[:20])),
    b"q": lambda m: m._put(m._number("<B")),
    b"r": lambda m: m._put(m._number("<I")),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"g": lambda m: m._push(m._memo[int(m._line()[:20])]),
    b"h": lambda m: m._push(m._memo[m._number("<B")]),
    b"j": lambda m: m._push(m._memo[m._number("<I")]),
    b"c": _global_line,
    b"\x93": _stack_global,
    b"R": lambda m: m._reduce(),
    b"\x81": lambda m: m._new(extended=False),
    b"\x92": lambda m: m._new(extended=True),
    b"b": lambda m: m._build(),
    b"i": lambda m: m._inst(),
    b"o": lambda m: m._instance(),
    b"Q": lambda m: m._push(m._find(m._pop())),
}
_STEPS: list[Callable[[Machine], Any]] = [
    _CODES.get(bytes([code]), Machine._refuse) for code in range(256)
]
