"""One lock per key, held across processes and given up by the kernel when a process dies."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from elastic_export.artifacts.disk import explained

__all__ = ["KeyLocks"]


class KeyLocks:
    """Named locks below a folder; the same thread may take one again.

    Args:
        folder: Where the lock files live while they are held.
        on_wait: Called with the key when another process holds the lock.
    """

    def __init__(self, folder: Path, on_wait: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_wait = on_wait
        self._held = threading.local()

    @contextmanager
    def hold(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of ``key``; without ``wait``, yield False where it is taken.

        Raises:
            UserError: When the lock file cannot be made.
        """
        held: set[str] = self._held.__dict__.setdefault("keys", set())
        if key in held:
            yield True
            return
        path = self._folder / f"{key}.lock"
        with explained(self._folder.parent):
            handle = self._take(path, key, wait)
        if handle is None:
            yield False
            return
        held.add(key)
        try:
            yield True
        finally:
            held.discard(key)
            path.unlink(missing_ok=True)
            os.close(handle)

    def _take(self, path: Path, key: str, wait: bool) -> int | None:
        told = False
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    os.close(handle)
                    return None
                if not told:
                    self._on_wait(key)
                    told = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            # The last holder removed the file it held: a lock on a removed file protects nothing.
            if _is_the_file(handle, path):
                return handle
            os.close(handle)


def _is_the_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
