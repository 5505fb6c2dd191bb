"""Progress on stderr: bars in a terminal, one line when a task begins and ends elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["BarProgress", "LineProgress"]


@dataclass
class _Task:
    label: str
    began: float
    bar: TaskID | None = None


def _took(task: _Task) -> str:
    return f"{monotonic() - task.began:.1f} s"


class LineProgress:
    """Write ``label ...`` when a task starts and ``label: 3.2 s`` when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._tasks: list[_Task] = []

    def start(self, label: str, total: int) -> None:
        """Begin a task inside the ones that are open."""
        self._tasks.append(_Task(label, monotonic()))
        self._write(f"{label} ...")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Do nothing: a log shows beginnings and ends."""

    def finish(self) -> None:
        """End the innermost task."""
        if self._tasks:
            task = self._tasks.pop()
            self._write(f"{task.label}: {_took(task)}")

    def close(self) -> None:
        """Forget tasks that an error left open."""
        self._tasks.clear()

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class BarProgress:
    """Draw a bar for every open task; a finished one leaves a line with its time."""

    def __init__(self, stream: TextIO) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=Console(file=stream),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._tasks: list[_Task] = []

    def start(self, label: str, total: int) -> None:
        """Begin a task inside the ones that are open."""
        if not self._tasks:
            self._bars.start()
        bar = self._bars.add_task(label, total=total or None, note="")
        self._tasks.append(_Task(label, monotonic(), bar))

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the innermost bar."""
        if self._tasks and (bar := self._tasks[-1].bar) is not None:
            self._bars.advance(bar, steps)
            if note:
                self._bars.update(bar, note=note)

    def finish(self) -> None:
        """End the innermost task."""
        if not self._tasks:
            return
        task = self._tasks.pop()
        if task.bar is not None:
            self._bars.remove_task(task.bar)
            self._bars.refresh()
        done = Text.assemble(("✓ ", "green"), task.label, " ", (_took(task), "dim"))
        self._bars.console.print(done)
        if not self._tasks:
            self._bars.stop()

    def close(self) -> None:
        """Take down what an error left on the screen."""
        while self._tasks:
            bar = self._tasks.pop().bar
            if bar is not None:
                self._bars.remove_task(bar)
        self._bars.stop()
