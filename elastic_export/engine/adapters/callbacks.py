"""What a builder calls while it works: a log that is kept, and a monitor that tells progress."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from elastic_export.progress import Progress

__all__ = ["Interrupt", "deferred_interrupt", "make_log", "make_monitor"]

TAIL = 40
"""Lines of a log that are worth keeping beside an engine."""
SPARSITY = "(Sparsity)"


class Interrupt:
    """The first thing that wants a build to stop; raised once the builder has returned."""

    def __init__(self) -> None:
        self.cause: BaseException | None = None

    def ask(self, cause: BaseException) -> None:
        """Have the build stopped at the builder's next step."""
        self.cause = self.cause or cause

    def attempt(self, call: Callable[[], object]) -> None:
        """Call what must not unwind through the builder's own code."""
        try:
            call()
        except BaseException as error:
            self.ask(error)


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Let Ctrl-C ask for the end of a build instead of unwinding through the builder.

    Only the main thread receives signals, so elsewhere nothing is changed.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handler(number: int, frame: FrameType | None) -> None:
        interrupt.ask(KeyboardInterrupt())

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def make_log(trt: Any) -> Any:
    """Make a logger that prints nothing.

    Returns:
        An ``ILogger`` with ``errors``, ``tail`` (the last lines but the verbose ones) and
        ``sparsity`` (the lines that tell which layers could use 2:4 and which do).
    """
    severity = trt.ILogger.Severity

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.tail: deque[str] = deque(maxlen=TAIL)
            self.sparsity: list[str] = []

        def log(self, level: Any, message: str) -> None:
            text = message.strip()
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(text)
            if SPARSITY in text:
                self.sparsity.append(text)
            if level != severity.VERBOSE and text.strip("-"):
                self.tail.append(text)

    return Log()


def make_monitor(trt: Any, progress: Progress, label: str, interrupt: Interrupt) -> Any | None:
    """Make a progress monitor; None where the module has none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes the steps of the outermost phase on; what goes wrong there stops the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost: str | None = None
            self._open = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None and self._outermost is None:
                self._outermost, self._open = phase, True
                interrupt.attempt(lambda: progress.start(label, steps))

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self._outermost:
                interrupt.attempt(progress.advance)
            return interrupt.cause is None

        def phase_finish(self, phase: str) -> None:
            if phase == self._outermost:
                self.close()

        def close(self) -> None:
            """End the task, which a refused graph leaves open."""
            if self._open:
                self._open = False
                interrupt.attempt(progress.finish)

    return Monitor()
