"""What a restricted reader yields in place of what it does not open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from elastic_export.errors import UserError

__all__ = ["SAVE_STATE_DICT", "Budget", "Opaque", "UnreadableError", "printable"]

SAVE_STATE_DICT = (
    "If you trust the file, load it where it was written and save only its state_dict: "
    "torch.save(model.state_dict(), path)."
)

_LONGEST_NAME = 120


class UnreadableError(Exception):
    """A file is refused; the message continues a sentence that begins with its path.

    Args:
        what: Such as ``is cut off or damaged``.
        fix: What to do; None for the usual advice to copy the file again.
    """

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


class Budget:
    """Bounds time and memory: every step is charged with about the bytes it takes.

    Args:
        size: What may be spent in all.
    """

    def __init__(self, size: int) -> None:
        self.left = size

    def charge(self, size: int) -> None:
        """Spend some of it.

        Raises:
            UnreadableError: Nothing is left.
        """
        self.left -= size
        if self.left < 0:
            raise UnreadableError(
                "describes more objects than a checkpoint has any use for", SAVE_STATE_DICT
            )


class Opaque:
    """Stands for an object that was not made: its class was not looked up, no code has run.

    It holds nothing but words. Whoever needs what the object holds meets a ``UserError``.

    Attributes:
        class_name: The class or function as the file names it, in printable characters.
        kind: ``object``; ``network`` for a module with its code; ``tensor`` for one that is not
            read, such as a quantized one; ``name`` for a class or function itself.
    """

    __slots__ = ("class_name", "kind")

    def __init__(self, class_name: str, kind: str = "object") -> None:
        self.class_name = printable(class_name)
        self.kind = kind

    def describe(self) -> str:
        """What it is, as the part of a sentence after "is"."""
        if self.kind == "network":
            return f"a whole network of class {self.class_name}, pickled with its code"
        if self.kind == "tensor":
            return f"a tensor that is not stored as plain values ({self.class_name})"
        return (
            f"an object of class {self.class_name}, which is not opened because it could run code"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._needed()

    def _needed(self, *_: object) -> NoReturn:
        raise UserError(f"The checkpoint holds {self.describe()}.", SAVE_STATE_DICT)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<not opened: {self.class_name}>"

    def __iter__(self) -> Iterator[Any]:
        self._needed()

    __getitem__ = __len__ = __contains__ = __call__ = __float__ = __int__ = __index__ = _needed


def printable(text: str) -> str:
    """Make a name from a file fit to print: no control characters, not endless."""
    safe = text if text.isprintable() else ascii(text)[1:-1]
    return safe if len(safe) <= _LONGEST_NAME else safe[: _LONGEST_NAME - 3] + "..."
