"""Write a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elastic_export.artifacts.disk import explained

__all__ = ["drafted", "write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside ``path``, reach the disk, then take its name in one step.

    Whoever reads meanwhile, or after a kill, finds the old file or the new one.

    Raises:
        UserError: The disk is full or the folder cannot be written; the old file stays.
    """
    with drafted(path) as draft:
        draft.write_bytes(data)


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; what is there at the end becomes ``path``.

    Raises:
        UserError: The disk is full or the folder cannot be written; the old file stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            with draft.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
