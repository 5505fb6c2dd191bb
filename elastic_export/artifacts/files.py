"""Write a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from elastic_export.artifacts.disk import explained

__all__ = ["write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside ``path``, reach the disk, then take its name in one step.

    Whoever reads meanwhile, or after a kill, finds the old file or the new one.

    Raises:
        UserError: The disk is full or the folder cannot be written; the old file stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
