"""Work beside the measurement: a reading now and then, and programs that write lines."""

import subprocess
import threading
from typing import Callable, List, Optional

__all__ = ["Listener", "Repeater"]


class Repeater:
    """Calls something at intervals, in a thread, until it is stopped.

    Args:
        seconds: Between two calls.
        work: What is called.
    """

    def __init__(self, seconds: float, work: Callable[[], None]) -> None:
        self._seconds = seconds
        self._work = work
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat)
        self._thread.daemon = True
        self._thread.start()

    def stop(self) -> None:
        """End it; the call under way is waited for."""
        self._ended.set()
        self._thread.join(timeout=5)

    def _repeat(self) -> None:
        while not self._ended.wait(self._seconds):
            self._work()


class Listener:
    """A program that runs until it is stopped, and a thread that reads its lines.

    Args:
        command: Program and arguments.
        take: Called with each line.

    Raises:
        OSError: The program cannot be started.
    """

    def __init__(self, command: List[str], take: Callable[[str], None]) -> None:
        self._take = take
        self._process: Optional[subprocess.Popen[bytes]] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._thread = threading.Thread(target=self._listen, args=(self._process,))
        self._thread.daemon = True
        self._thread.start()

    def stop(self) -> None:
        """End the program; what was read stays."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._thread.join(timeout=5)
        if process.stdout is not None:
            process.stdout.close()

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        if process.stdout is not None:
            for raw in iter(process.stdout.readline, b""):
                self._take(raw.decode("utf-8", "replace"))
