"""A board over the system's own ``ssh`` and ``scp``: run, send, fetch, and survive a lost line.

Nothing is installed there: POSIX sh and python3 are all it needs. Keys, jump hosts and ports come
from the user's ``~/.ssh/config``; a password is never asked for (BatchMode). One connection is
shared by all calls (ControlMaster), in a private folder that goes with the object.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import TracebackType

from elastic_export.errors import UserError

__all__ = ["Answer", "Board", "ConnectionLost"]

LOST = 255
"""ssh's own exit code: the connection, not the command, failed."""

CONNECT_SECONDS = 15
ALIVE_SECONDS = 5
ALIVE_COUNT = 3
FIRST_WAIT = 1.0
LONGEST_WAIT = 20.0


class ConnectionLost(Exception):  # noqa: N818 - it is a state to recover from, seldom an error
    """The board could not be reached; ``str`` is what ssh said."""


@dataclass(frozen=True)
class Answer:
    """How a command on the board ended."""

    code: int
    out: str
    err: str


class Board:
    """One board; use as a context manager, which closes the shared connection.

    Args:
        destination: What ``ssh`` takes: ``user@host`` or a name of ``~/.ssh/config``.
        config: Another configuration file than the user's.
        patience: Seconds to keep trying after a connection was lost.
        told: Called with a sentence when the connection is lost or back.
        stop: Set by another thread to give up waiting, as an interrupt does.

    Raises:
        UserError: ``ssh`` or ``scp`` is missing, or the destination is no name of a machine.
    """

    def __init__(
        self,
        destination: str,
        *,
        config: Path | None = None,
        patience: float = 300.0,
        told: Callable[[str], None] = lambda text: None,
        stop: Event | None = None,
    ) -> None:
        if not destination or destination.startswith("-") or any(c.isspace() for c in destination):
            raise UserError(
                f'"{destination}" is not a machine to connect to.',
                "Write user@host, or a name from your ~/.ssh/config.",
            )
        for program in ("ssh", "scp"):
            if shutil.which(program) is None:
                raise UserError(
                    f"{program} is not installed on this machine.",
                    "Install the OpenSSH client: sudo apt install openssh-client.",
                )
        self.destination = destination
        self.patience = patience
        self._told = told
        self._stop = stop or Event()
        self._reached = False
        # A socket's path may have some 100 characters at most, so not below a deep TMPDIR.
        self._sockets = Path(tempfile.mkdtemp(prefix="ee-ssh.", dir="/tmp"))
        settings = {
            "BatchMode": "yes",
            "ControlMaster": "auto",
            "ControlPath": str(self._sockets / "%C"),
            "ControlPersist": "60",
            "ConnectTimeout": str(CONNECT_SECONDS),
            "ServerAliveInterval": str(ALIVE_SECONDS),
            "ServerAliveCountMax": str(ALIVE_COUNT),
        }
        self._options = [] if config is None else ["-F", str(config)]
        for name, value in settings.items():
            self._options += ["-o", f"{name}={value}"]

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the shared connection."""
        leave = ["ssh", *self._options, "-O", "exit", self.destination]
        try:
            subprocess.run(leave, capture_output=True, check=False, timeout=CONNECT_SECONDS)
        except subprocess.TimeoutExpired:
            self._told(f"{self.destination}: the connection does not close by itself")
        finally:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def once(self, command: str, *, timeout: float = 120.0, give: bytes = b"") -> Answer:
        """Run a shell command there, without a second try.

        Args:
            command: For the login shell there; quote what comes from outside.
            timeout: Seconds.
            give: Its standard input.

        Raises:
            ConnectionLost: The connection failed, or nothing came back in time.
        """
        arguments = ["ssh", *self._options, self.destination, command]
        return self._finish(arguments, timeout, give)

    def run(self, command: str, *, timeout: float = 120.0) -> Answer:
        """Run a command that may be run twice; a lost connection is tried again for a while.

        Raises:
            UserError: The board could not be reached within ``patience``.
        """
        return self.patiently(lambda: self.once(command, timeout=timeout))

    def push(self, path: Path, target: str, *, timeout: float = 3600.0) -> None:
        """Copy a file or folder to ``target`` there, whole or not at all.

        What arrives goes to a draft first and takes its name when all of it is there.

        Raises:
            UserError: It could not be copied.
        """
        draft = f"{target}.part"

        def send() -> Answer:
            self.once(f"rm -rf {shlex.quote(draft)}")
            copy = ["scp", "-q", "-r", *self._options, str(path), f"{self.destination}:{draft}"]
            return self._finish(copy, timeout, b"")

        sent = self.patiently(send)
        if sent.code != 0:
            raise UserError(
                f"{path.name} could not be copied to {self.destination}: {_last(sent.err)}.",
                "Check the free space and the permissions of the home folder there.",
            )
        moved = self.run(
            f"rm -rf {shlex.quote(target)} && mv {shlex.quote(draft)} {shlex.quote(target)}"
        )
        if moved.code != 0:
            raise UserError(
                f"{target} could not be put in place on {self.destination}: {_last(moved.err)}.",
                "Check the permissions of the home folder there.",
            )

    def patiently(self, work: Callable[[], Answer]) -> Answer:
        """Do something over the connection until it gets through.

        A board that was never reached is told at once; waiting is for one that was lost.

        Raises:
            UserError: It did not within ``patience``.
        """
        begin, wait = time.monotonic(), FIRST_WAIT
        lost = False
        while True:
            answer = _reached(work)
            if isinstance(answer, Answer):
                self._reached = True
                if lost:
                    self._told(f"{self.destination}: the connection is back")
                return answer
            by_hand = f'Try "ssh {self.destination}" by hand; it must work without a password.'
            what = f"{self.destination} cannot be reached: {answer}."
            if not self._reached:
                raise UserError(what, by_hand) from answer
            left = self.patience - (time.monotonic() - begin)
            if left <= 0:
                kept = "What was finished is kept, and the same command goes on from there."
                raise UserError(what, f"{by_hand} {kept}") from answer
            if not lost:
                self._told(f"{self.destination}: the connection is lost, trying again")
            lost = True
            self._forget()
            if self._stop.wait(min(wait, left)):
                raise KeyboardInterrupt
            wait = min(2 * wait, LONGEST_WAIT)

    def _finish(self, arguments: list[str], timeout: float, give: bytes) -> Answer:
        try:
            done = subprocess.run(
                arguments, input=give, capture_output=True, check=False, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise ConnectionLost(f"no answer after {timeout:g} s") from error
        err = done.stderr.decode("utf-8", "replace")
        # scp hands ssh's 255 on, or ends with 1 and says so.
        gone = done.returncode == LOST or "lost connection" in err or "Connection closed" in err
        if gone and done.returncode != 0:
            raise ConnectionLost(_last(err))
        return Answer(done.returncode, done.stdout.decode("utf-8", "replace"), err)

    def _forget(self) -> None:
        """Drop a shared connection that may be half dead."""
        for socket in self._sockets.glob("*"):
            socket.unlink(missing_ok=True)


def _reached(work: Callable[[], Answer]) -> Answer | ConnectionLost:
    try:
        return work()
    except ConnectionLost as error:
        return error


def _last(text: str) -> str:
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it gives no reason"
