"""The search's state on disk: plain JSON, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elastic_export.artifacts.files import write_atomically

__all__ = ["load_state", "save_state"]


def save_state(path: Path, key: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a state atomically: after a crash the file is the old one or the new one.

    Raises:
        UserError: The disk is full or the folder cannot be written; an older state stays.
    """
    write_atomically(path, json.dumps({"key": key, "state": state}).encode())


def load_state(path: Path, key: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Read a state that :func:`save_state` wrote for the same search.

    Returns:
        The state and an empty text, or None and why the search starts anew (empty when there is
        simply no file yet).
    """
    if not path.exists():
        return None, ""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        found, state = saved["key"], saved["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"the saved state {path} is damaged ({type(error).__name__})"
    if found != json.loads(json.dumps(key)):
        return None, f"the saved state {path} belongs to another space, recipe or seed"
    return state, ""
