"""How long work tells what it is doing: the library reports, the command line draws."""

from __future__ import annotations

from threading import Lock
from typing import Protocol

__all__ = ["Lanes", "Progress", "no_progress"]


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


class Lanes:
    """Several threads on one progress: one task, in which each lane tells under its own name.

    Args:
        progress: Where it is told.
        label: The task that all lanes work on; ``close`` ends it.
    """

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._lock = Lock()
        progress.start(label, 0)

    def lane(self, name: str) -> Progress:
        """Return a progress for one thread."""
        return _Lane(self, name)

    def tell(self, steps: int, note: str) -> None:
        """Report steps of any lane."""
        with self._lock:
            self._progress.advance(steps, note=note)

    def close(self) -> None:
        """End the task."""
        with self._lock:
            self._progress.finish()


class _Lane:
    def __init__(self, lanes: Lanes, name: str) -> None:
        self._lanes = lanes
        self._name = name

    def start(self, label: str, total: int) -> None:
        """Tell what begins."""
        self._lanes.tell(0, f"{self._name}: {label}")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Tell a step; one without words says nothing new."""
        if note:
            self._lanes.tell(steps, f"{self._name}: {note}")

    def finish(self) -> None:
        """Nothing: the next start tells more."""
