"""Digests: the identity of bytes, files, folders and settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

__all__ = [
    "canonical_json",
    "sha256_bytes",
    "sha256_file",
    "sha256_json",
    "sha256_sources",
    "sha256_tree",
]


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_tree(folder: Path) -> str:
    """Return the SHA-256 over the relative paths and contents of all files below ``folder``.

    Times, permissions and empty folders do not count.
    """
    files = sorted(
        (path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file()
    )
    return sha256_json({name: sha256_file(path) for name, path in files})


def sha256_sources(folder: Path) -> str:
    """Return the SHA-256 over the Python sources below ``folder``; nothing else counts."""
    files = sorted(folder.rglob("*.py"))
    return sha256_json({path.relative_to(folder).as_posix(): sha256_file(path) for path in files})


def canonical_json(value: object) -> str:
    """Write ``value`` as JSON that is the same for equal values: sorted keys, no spaces.

    Schemas, dataclasses, mappings with string keys, tuples and lists are taken apart; NaN and
    infinity are refused, because they have no JSON form.

    Returns:
        ``canonical_json({"b": (1, 2), "a": None})`` is ``'{"a":null,"b":[1,2]}'``.

    Raises:
        TypeError: For a value without a JSON form, such as a path or an array.
        ValueError: For NaN or infinity.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_json(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of ``value``."""
    return sha256_bytes(canonical_json(value).encode())


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        for key in value:
            # json would turn 1 and "1" into the same key, and two configurations into one digest.
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is {type(key).__name__}, not str")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
