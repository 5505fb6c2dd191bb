"""The system as the script sees it: files, commands, and what is told to whoever waits."""

import contextlib
import errno
import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional

__all__ = [
    "Cannot",
    "Done",
    "FileLock",
    "Teller",
    "deferred_interrupts",
    "find_program",
    "follow",
    "read_text",
    "run",
    "write_json",
]


class Cannot(Exception):
    """Something that cannot be done here: what happened, and what to do."""

    exit_code = 1

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def to_json(self) -> Dict[str, str]:
        """Return both sentences for the result file."""
        return {"what": self.what, "remedy": self.remedy}


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Raise an interrupt at the end of what must not be cut in two.

    Only the main thread receives signals, so elsewhere nothing is changed.
    """
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [(kind, signal.getsignal(kind)) for kind in kinds]
    if threading.current_thread() is not threading.main_thread():
        before = []
    came: List[int] = []
    for kind, handler in before:
        if callable(handler):
            signal.signal(kind, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for kind, handler in before:
            if callable(handler):
                signal.signal(kind, handler)
    if came:
        raise KeyboardInterrupt


class Done:
    """How a command ended: its exit code (None: it did not start or ran too long) and output."""

    def __init__(self, code: Optional[int], out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def ok(self) -> bool:
        """Whether it ran and succeeded."""
        return self.code == 0


def run(arguments: List[str], timeout: float = 30.0) -> Done:
    """Run a short command without a shell and without a terminal; never raises for what it does.

    Args:
        arguments: Program and arguments.
        timeout: Seconds after which it is killed.
    """
    try:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        return Done(None, "", str(error))
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Done(None, "", "no end after {:g} s".format(timeout))
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Done(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def follow(
    arguments: List[str],
    timeout: float,
    on_line: Optional[Callable[[str, float], None]] = None,
    log: Optional[str] = None,
) -> Done:
    """Run a long command, both of its streams as one, and tell of each line when it comes.

    It has a session of its own, which is killed as a whole when its time is up or an interrupt
    comes: a wrapper script's child is not left behind, neither a builder nor a timing run.

    Args:
        arguments: Program and arguments.
        timeout: Seconds after which it is killed.
        on_line: Called with a line and the moment (``time.monotonic``) it was read at.
        log: A file that takes the output instead of memory; lines are not told then.
    """
    process: "Optional[subprocess.Popen[bytes]]" = None
    lines = _Lines(on_line)
    try:
        with deferred_interrupts():
            process = _start(arguments, log)
        ended = _pump(process, time.monotonic() + timeout, lines.take)
    except OSError as error:
        if process is not None:
            _kill_all(process)
        return Done(None, lines.text(), str(error))
    except BaseException:
        if process is not None:
            _kill_all(process)
        raise
    if not ended:
        _kill_all(process)
        return Done(None, lines.text(), "no end after {:g} s".format(timeout))
    if process.stdout is not None:
        process.stdout.close()
    return Done(process.wait(), lines.text(), "")


class _Lines:
    """Output as it comes in pieces, handed on in whole lines."""

    def __init__(self, on_line: Optional[Callable[[str, float], None]]) -> None:
        self._on_line = on_line
        self._pieces: List[bytes] = []
        self._open = b""

    def take(self, piece: bytes, when: float) -> None:
        self._pieces.append(piece)
        if self._on_line is None:
            return
        *whole, self._open = (self._open + piece).split(b"\n")
        for line in whole:
            self._on_line(line.decode("utf-8", "replace"), when)

    def text(self) -> str:
        return b"".join(self._pieces).decode("utf-8", "replace")


def _start(arguments: List[str], log: Optional[str]) -> "subprocess.Popen[bytes]":
    sink: Any = subprocess.PIPE if log is None else open(log, "wb")
    try:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        if log is not None:
            sink.close()


def _pump(
    process: "subprocess.Popen[bytes]", deadline: float, take: Callable[[bytes, float], None]
) -> bool:
    """Read until the process ends; false where the deadline comes first."""
    output = process.stdout
    if output is None:
        return _wait(process, deadline - time.monotonic())
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if selector.select(min(left, 1.0)):
                piece = os.read(output.fileno(), 1 << 16)
                if not piece:
                    return _wait(process, max(0.1, deadline - time.monotonic()))
                take(piece, time.monotonic())
            elif process.poll() is not None:
                return True  # a child that it left behind keeps the output open


def _wait(process: "subprocess.Popen[bytes]", timeout: float) -> bool:
    try:
        process.wait(timeout=timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill_all(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


class FileLock:
    """One process at a time among those that lock a file; it ends with the process, however.

    Where files cannot be locked (some network folders), everybody goes on.

    Args:
        path: Of the lock, made where it is missing and left there.
        teller: Told where another process holds it.
        waiting: What is told then.
    """

    def __init__(self, path: str, teller: "Teller", waiting: str) -> None:
        self._path = path
        self._teller = teller
        self._waiting = waiting
        self._handle: Optional[int] = None

    def __enter__(self) -> "FileLock":
        # The kernel may forbid O_CREAT on another user's file in /tmp (fs.protected_regular).
        self._handle = _open_file(self._path, os.O_RDONLY)
        if self._handle is None:
            self._handle = _open_file(self._path, os.O_RDONLY | os.O_CREAT)
        if self._handle is not None:
            try:
                self._lock(self._handle)
            except OSError:
                self._close()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._teller.note(self._waiting)
            fcntl.flock(handle, fcntl.LOCK_EX)

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None


def _open_file(path: str, flags: int) -> Optional[int]:
    try:
        return os.open(path, flags, 0o666)
    except OSError:
        return None


def find_program(name: str, *places: str) -> Optional[str]:
    """Return the path of a program from the given places, else from PATH."""
    for place in places:
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return place
    return shutil.which(name)


def read_text(path: str) -> Optional[str]:
    """Return a small system file as text, None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            text = file.read(1 << 20).decode("utf-8", "replace")
    except OSError:
        return None
    return text.replace("\x00", "").strip()


def write_json(path: str, content: Dict[str, Any]) -> None:
    """Replace a JSON file in one step, so that a reader sees the old or the new one.

    Raises:
        Cannot: the disk is full or the folder cannot be written; the old file stays.
    """
    draft = "{}.{}.part".format(path, os.getpid())
    try:
        with open(draft, "w") as file:
            json.dump(content, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        if os.path.exists(draft):
            os.remove(draft)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise Cannot(
            "{} cannot be written: {}.".format(path, error.strerror or error),
            "{}another place with --out or --engine-dir.".format(
                "Free some space, or name " if full else "Name "
            ),
        )


class Teller:
    """Tells what is going on, on stderr: lines for a person, or one JSON document a line."""

    def __init__(self, form: str = "plain") -> None:
        self.form = form
        self.started = time.time()

    def phase(self, name: str, total: int = 0) -> None:
        """Begin something that takes time, of ``total`` steps where that is known."""
        self._tell("phase", name, {"total": total})

    def step(self, name: str, done: int, total: int) -> None:
        """Tell that a step is done."""
        self._tell("progress", name, {"done": done, "total": total})

    def note(self, text: str) -> None:
        """Tell what the reader should know."""
        self._tell("note", text, {})

    def _tell(self, event: str, text: str, more: Dict[str, Any]) -> None:
        seconds = round(time.time() - self.started, 1)
        if self.form == "json":
            line = json.dumps(dict(more, event=event, text=text, seconds=seconds))
        elif event == "progress":
            line = "  {done}/{total} {text}".format(text=text, **more)
        else:
            line = text if event == "phase" else "note: " + text
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            # Whoever listened is gone (a lost connection); the measurement goes on.
            self.form = "json"
