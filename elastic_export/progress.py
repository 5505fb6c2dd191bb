"""How long work tells what it is doing: the library reports, the command line draws."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "no_progress"]


class Progress(Protocol):
    """One task at a time: ``start``, any number of ``advance``, ``finish``."""

    def start(self, label: str, total: int) -> None:
        """Begin a task of ``total`` steps."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report steps done; ``note`` is a short state such as the loss."""

    def finish(self) -> None:
        """End the task."""


class _Silent:
    def start(self, label: str, total: int) -> None:
        """Ignore the task."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Ignore the steps."""

    def finish(self) -> None:
        """Ignore the end."""


no_progress: Progress = _Silent()
