"""The training state on disk: written whole or not at all, read only when it fits."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from elastic_export.artifacts.files import write_atomically

__all__ = ["load_state", "save_state"]

# torch.load does not check the checksums of its own format, so the file begins with one of ours.
_CHECKSUM_BYTES = 32
# What torch.load raises for a file that something else wrote, by what it meets first.
_DAMAGED = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)


def save_state(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write a state atomically: after a crash the file is the old one or the new one.

    Args:
        path: The file; its folder is made.
        key: What the run is (see :func:`load_state`).
        state: Tensors, numbers, text, lists and dicts of these.

    Raises:
        UserError: The disk is full or the folder cannot be written; an older state stays.
    """
    stream = io.BytesIO()
    torch.save({"key": key, "state": state}, stream)
    content = stream.getvalue()
    write_atomically(path, hashlib.sha256(content).digest() + content)


def load_state(path: Path, key: str) -> tuple[dict[str, Any] | None, str]:
    """Read a state that :func:`save_state` wrote for the same run. No code in the file is run.

    Args:
        path: The file.
        key: What the run is; a state with another key is of no use to it.

    Returns:
        The state and an empty text, or None and why training starts anew (empty when there is
        simply no file yet).
    """
    if not path.exists():
        return None, ""
    try:
        data = path.read_bytes()
        checksum, content = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
        if hashlib.sha256(content).digest() != checksum:
            return None, f"the saved state {path} is damaged (its checksum differs)"
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        found, state = saved["key"], saved["state"]
    except (*_DAMAGED, TypeError) as error:
        return None, f"the saved state {path} is damaged ({type(error).__name__})"
    if found != key:
        return None, f"the saved state {path} belongs to another recipe, data set or seed"
    return state, ""
