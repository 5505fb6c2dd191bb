"""The manifest of one artifact: what its folder holds, byte for byte."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from elastic_export.artifacts.digest import canonical_json, sha256_file, sha256_json

__all__ = ["MANIFEST", "SUMMARY", "Artifact", "Damaged", "read", "seal", "write_summary"]

MANIFEST = "manifest.json"
SUMMARY = "summary.json"
_VERSION = 1


class Damaged(Exception):  # noqa: N818 - says what the folder is
    """The folder is not what its manifest says."""


@dataclass(frozen=True)
class Artifact:
    """A finished, verified folder in the store.

    Attributes:
        path: The folder; to be read, never written.
        key: Its name in the store: the digest of everything that led to it.
        stage: The stage that made it.
        digest: SHA-256 over its contents without the summary, so that two runs which made the
            same files count as the same input for the next stage whatever time they took.
        summary: What the stage told about its work.
    """

    path: Path
    key: str
    stage: str
    digest: str
    summary: dict[str, Any]


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Leave the stage's account of its work in ``folder``, to be read back with the artifact."""
    text = json.dumps(summary, indent=1, sort_keys=True, allow_nan=False)
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")


def seal(folder: Path, key: str, stage: str) -> None:
    """Write the manifest of a finished folder and force everything to the disk.

    Raises:
        ValueError: When the folder holds a link: its target could change behind the manifest.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path.name} is a link; an artifact holds plain files only")
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    body = {
        "manifest_version": _VERSION,
        "key": key,
        "stage": stage,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": files,
        "digest": _content_digest(files),
    }
    body["seal"] = sha256_json(body)
    (folder / MANIFEST).write_text(canonical_json(body), encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Force a file or a folder's list of names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest and check it against itself, without reading the files it lists.

    Raises:
        Damaged: When it is missing, unreadable or changed.
    """
    try:
        body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"its manifest cannot be read ({error})") from error
    if not isinstance(body, dict) or body.get("manifest_version") != _VERSION:
        raise Damaged("its manifest has another form")
    claimed = body.pop("seal", None)
    if claimed != sha256_json(body) or body["key"] != folder.name:
        raise Damaged("its manifest was changed")
    return body


def read(folder: Path) -> Artifact:
    """Read a finished folder after comparing every file's size and digest with the manifest.

    Raises:
        Damaged: When anything differs.
    """
    body = manifest(folder)
    for name, expected in body["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise Damaged(f"{name} has {size} bytes instead of {expected['bytes']}")
            if sha256_file(path) != expected["sha256"]:
                raise Damaged(f"the content of {name} was changed")
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from error
    summary: dict[str, Any] = {}
    if SUMMARY in body["files"]:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return Artifact(folder, body["key"], body["stage"], body["digest"], summary)


def _content_digest(files: dict[str, dict[str, Any]]) -> str:
    return sha256_json({name: entry for name, entry in files.items() if name != SUMMARY})
