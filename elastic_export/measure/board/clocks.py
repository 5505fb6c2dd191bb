"""Clocks held still while something is measured, and put back afterwards whatever happens.

Jetson: ``jetson_clocks`` locks to the maximum of the *current* power mode; ``--store`` keeps what
was before and ``--restore`` brings it back. Other NVIDIA GPUs: ``nvidia-smi -lgc``. Both need root,
and without it the measurement goes on, marked as unpinned.

One run at a time pins them (``main`` sees to that): a second one would store clocks that are pinned
already, and "restore" them for good.
"""

import contextlib
import os
import signal
import tempfile
from typing import Any, Iterator, List, Optional

from elastic_export.measure.board.identity import can_sudo, smi_command
from elastic_export.measure.board.shell import Teller, find_program, run

__all__ = ["PinnedClocks"]


class PinnedClocks:
    """Pins the clocks as a context manager; ``pinned`` and ``why_not`` tell what came of it."""

    def __init__(self, teller: Teller, wanted: bool = True) -> None:
        self.pinned = False
        self.why_not = "" if wanted else "it was asked not to pin them"
        self._teller = teller
        self._undo: List[List[str]] = []
        self._store: Optional[str] = None

    def __enter__(self) -> "PinnedClocks":
        if not self.why_not:
            try:
                self._pin()
            except BaseException:
                self.__exit__()
                raise
        if not self.pinned:
            self._teller.note("the clocks are not pinned: " + self.why_not)
        return self

    def __exit__(self, *_: Any) -> None:
        with _uninterrupted():
            self._restore()

    def _pin(self) -> None:
        jetson = find_program("jetson_clocks", "/usr/bin/jetson_clocks")
        desktop = find_program("nvidia-smi")
        if jetson is None and desktop is None:
            self.why_not = "there is neither jetson_clocks nor nvidia-smi"
            return
        if not can_sudo():
            self.why_not = "that needs root, and sudo asks for a password"
            return
        if jetson is not None:
            self._pin_jetson(jetson)
        elif desktop is not None:
            self._pin_desktop(desktop)

    def _pin_jetson(self, program: str) -> None:
        handle, store = tempfile.mkstemp(prefix="jetson_clocks.")
        os.close(handle)
        os.remove(store)  # jetson_clocks refuses to overwrite
        stored = run(_as_root([program, "--store", store]))
        if not stored.ok:
            self.why_not = "jetson_clocks could not store the present clocks"
            return
        self._store = store
        self._undo.append(_as_root([program, "--restore", store]))
        self.pinned = run(_as_root([program])).ok
        if not self.pinned:
            self.why_not = "jetson_clocks failed"

    def _pin_desktop(self, program: str) -> None:
        ask = smi_command("clocks.max.sm")
        asked, card = run(ask), ask[1:3]
        top = asked.out.strip().splitlines()[0].strip() if asked.ok and asked.out.strip() else ""
        if not top.isdigit():
            self.why_not = "nvidia-smi does not tell the highest clock"
            return
        self._undo.append(_as_root([program, *card, "-rgc"]))
        self.pinned = run(_as_root([program, *card, "-lgc", "{0},{0}".format(top)])).ok
        if not self.pinned:
            self.why_not = "nvidia-smi may not lock the clock of this GPU"

    def _restore(self) -> None:
        while self._undo:
            command = self._undo.pop()
            if not run(command, timeout=60).ok:
                self._teller.note("the clocks were not restored; run: " + " ".join(command))
                return
        if self._store is not None and os.path.exists(self._store):
            run(_as_root(["rm", "-f", self._store]))
        self._store = None


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let nothing interrupt, the commands that are run included: they inherit what is ignored."""
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [(kind, signal.signal(kind, signal.SIG_IGN)) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in before:
            signal.signal(kind, signal.SIG_DFL if handler is None else handler)


def _as_root(command: List[str]) -> List[str]:
    return command if os.geteuid() == 0 else ["sudo", "-n", *command]
