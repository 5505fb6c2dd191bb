"""The content-addressed store: finished work is found again, unfinished work is never read.

A key is the digest of everything that leads to an artifact, so the same question finds the same
answer, and a changed setting asks another question. An artifact appears by one rename, after its
files and their digests are on the disk.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import time
from typing import Any

from elastic_export.artifacts import provenance
from elastic_export.artifacts.digest import sha256_json
from elastic_export.artifacts.disk import explained
from elastic_export.artifacts.locks import KeyLocks
from elastic_export.artifacts.manifest import (
    Artifact,
    Damaged,
    manifest,
    read,
    seal,
    sync,
    write_summary,
)

__all__ = ["Artifact", "Entry", "Store", "StoreWarning", "default_root"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class StoreWarning(UserWarning):
    """Something about the store that the user should know and need not act on."""


@dataclass(frozen=True)
class Entry:
    """One line of ``cache list``; ``used`` is the time of the last use in seconds of the epoch."""

    key: str
    stage: str
    created: str
    used: float
    bytes: int


def default_root() -> Path:
    """Return ``$ELASTIC_EXPORT_HOME``, or ``elastic-export`` in the user's cache folder (XDG)."""
    if home := os.environ.get("ELASTIC_EXPORT_HOME"):
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "elastic-export"


class Store:
    """Artifacts below one folder, shared safely by several processes.

    Args:
        root: The folder, made on first use; :func:`default_root` when absent.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = (default_root() if root is None else Path(root)).expanduser().absolute()
        self._locks = KeyLocks(self.root / "locks", _tell_waiting)

    @staticmethod
    def key(
        stage: str,
        revision: str | int,
        config: object,
        inputs: Mapping[str, str] | Sequence[str],
        tools: Iterable[str] = (),
    ) -> str:
        """Return the key of an artifact: the stage's name and a digest of all that leads to it.

        Args:
            stage: Name of the stage.
            revision: Of the stage's own code; raised when the same input gives another output.
            config: Settings of the stage: a schema or anything with a JSON form.
            inputs: Digests of what the stage reads.
            tools: Names of distributions whose installed version matters for the result.
        """
        asked = {
            "stage": stage,
            "revision": str(revision),
            "config": config,
            "inputs": inputs,
            "tools": {name: provenance.version(name) for name in tools},
        }
        return f"{stage}-{sha256_json(asked)[:32]}"

    def get(self, key: str) -> Artifact | None:
        """Return the artifact after verifying every byte, or None where there is none.

        A damaged artifact is moved to ``damaged/`` with a :class:`StoreWarning` and counts as
        absent.
        """
        folder = self._artifact(key)
        if not folder.is_dir():
            return None
        try:
            artifact = read(folder)
        except Damaged:
            return self._set_aside(folder)
        with suppress(OSError):  # a store that is only readable has no time of last use
            os.utime(folder)
        return artifact

    @contextmanager
    def create(self, key: str, stage: str) -> Iterator[Path]:
        """Yield an empty folder that becomes the artifact when the block ends without an error.

        The key is locked meanwhile. An artifact of the same key is replaced; on an error the
        folder is removed and the store stays as it was.

        Raises:
            UserError: When the disk is full or the store cannot be written.
        """
        with self.lock(key), explained(self.root):
            draft = self.root / "drafts" / key
            # Under the lock, a draft of this key can only be what a killed process left.
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            try:
                yield draft
                seal(draft, key, stage)
                self._publish(draft, key)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def build(
        self,
        key: str,
        stage: str,
        make: Callable[[Path], dict[str, Any] | None],
        *,
        fresh: bool = False,
    ) -> Artifact:
        """Return the artifact of ``key``, made by ``make(folder)`` if it is not there yet.

        Where another process is making it, wait and take what it made. The dictionary that
        ``make`` returns becomes the artifact's summary.

        Args:
            key: From :meth:`key`.
            stage: Name of the stage.
            make: Fills the folder it is given.
            fresh: Make it again even if it is there.
        """
        if not fresh and (found := self.get(key)):
            return found
        with self.lock(key):
            if not fresh and (found := self.get(key)):
                return found
            with self.create(key, stage) as folder:
                summary = make(folder)
                if summary is not None:
                    write_summary(folder, summary)
            return read(self._artifact(key))

    def lock(self, key: str) -> AbstractContextManager[bool]:
        """Hold ``key`` against other processes and threads; waits where it is taken."""
        return self._locks.hold(_checked(key))

    def work(self, key: str) -> Path:
        """Return a folder for the unfinished state of ``key``, kept until the artifact exists."""
        folder = self.root / "work" / _checked(key)
        with explained(self.root):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def entries(self) -> list[Entry]:
        """Return what the store holds, the most recently used first; files are not verified."""
        found = []
        for folder in _children(self.root / "artifacts"):
            try:
                body = manifest(folder)
                stage, created = body["stage"], body["created"]
            except Damaged:
                stage, created = "damaged", ""
            used = folder.stat().st_mtime
            found.append(Entry(folder.name, stage, created, used, _bytes_below(folder)))
        return sorted(found, key=lambda entry: (-entry.used, entry.key))

    def size(self) -> int:
        """Return the bytes of everything below the root, unfinished and damaged work included."""
        return _bytes_below(self.root)

    def remove(self, key: str) -> bool:
        """Remove an artifact and its unfinished work; return whether there was any."""
        with self.lock(key), explained(self.root):
            return self._discard(key)

    def prune(self, older_than: timedelta | None = None) -> int:
        """Remove what was not used for ``older_than``, or everything; return the bytes freed.

        Keys that a running process holds are left alone.
        """
        limit = None if older_than is None else time() - older_than.total_seconds()
        before = self.size()
        rooms = [self.root / room for room in ("artifacts", "work", "drafts")]
        keys = {folder.name for room in rooms for folder in _children(room)}
        with explained(self.root):
            for key in sorted(keys):
                with self._locks.hold(key, wait=False) as free:
                    if free and self._is_old(key, limit):
                        self._discard(key)
            for folder in _children(self.root / "damaged"):
                if limit is None or _newest(folder) < limit:
                    shutil.rmtree(folder)
        return before - self.size()

    def _is_old(self, key: str, limit: float | None) -> bool:
        if limit is None:
            return True
        artifact, work = self._artifact(key), self.root / "work" / key
        used = artifact.stat().st_mtime if artifact.is_dir() else 0.0
        return max(used, _newest(work)) < limit

    def _discard(self, key: str) -> bool:
        folders = [self._artifact(key), self.root / "work" / key, self.root / "drafts" / key]
        there = [folder for folder in folders if folder.is_dir()]
        for folder in there:
            shutil.rmtree(folder)
        return bool(there)

    def _artifact(self, key: str) -> Path:
        return self.root / "artifacts" / _checked(key)

    def _publish(self, draft: Path, key: str) -> None:
        folder = self._artifact(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        old = self.root / "drafts" / f"{key}.old"
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        draft.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.root / "work" / key, ignore_errors=True)

    def _set_aside(self, folder: Path) -> Artifact | None:
        with self.lock(folder.name):
            try:
                # Another process may have replaced it between the reading and the lock.
                return read(folder)
            except Damaged as error:
                reason = str(error)
            if not folder.is_dir():
                return None
            number = len(_children(self.root / "damaged"))
            place = self.root / "damaged" / f"{folder.name}.{number}"
            with explained(self.root):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(place, ignore_errors=True)
                folder.rename(place)
        warnings.warn(
            f"The stored artifact {folder.name} is damaged: {reason}. It was moved to {place} and "
            "is made again.",
            StoreWarning,
            stacklevel=3,
        )
        return None


def _checked(key: str) -> str:
    if not _NAME.fullmatch(key):
        raise ValueError(f"{key!r} is not a key of the store")
    return key


def _tell_waiting(key: str) -> None:
    message = f"Another run is making {key}; waiting for it to finish."
    warnings.warn(message, StoreWarning, stacklevel=5)


def _children(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another process may finish or prune meanwhile
            total += path.lstat().st_size if path.is_file() else 0
    return total


def _newest(folder: Path) -> float:
    times = [0.0]
    for path in [folder, *folder.rglob("*")]:
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)
