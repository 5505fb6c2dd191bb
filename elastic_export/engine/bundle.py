"""The bundle: one folder that goes to a device, complete, explained and checked byte by byte."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from elastic_export.artifacts.digest import canonical_json, sha256_file
from elastic_export.artifacts.disk import explained
from elastic_export.artifacts.manifest import sync
from elastic_export.engine.bundle_manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    Port,
    Runtime,
    Sample,
    damaged,
    digest,
    is_bundle,
    is_safe,
    read_manifest,
    render,
)
from elastic_export.engine.bundle_readme import readme
from elastic_export.engine.trtexec import trtexec_script
from elastic_export.errors import UserError

__all__ = [
    "MANIFEST",
    "Bundle",
    "FileEntry",
    "Manifest",
    "Port",
    "Runtime",
    "Sample",
    "load_bundle",
    "sample_file",
    "trtexec_script",
    "write_bundle",
]

README = "README.md"
STALE_SECONDS = 3600.0
TOKEN_DIGITS = 8


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    manifest: Manifest

    def model(self, precision: str) -> Path:
        """Find the ONNX file of a precision.

        Raises:
            UserError: The bundle has no such precision.
        """
        name = self.manifest.models.get(precision)
        if name is None:
            raise UserError(
                f'The bundle {self.folder} has no "{precision}" model.',
                f"It has: {', '.join(self.manifest.models)}.",
            )
        return self.folder / name

    def macs(self, precision: str, *, skips: bool = True) -> int | None:
        """MACs computed of one image; None where the bundle does not say.

        Args:
            precision: Of the model.
            skips: What runs it leaves out the zeros that the bundle's target leaves out.
        """
        told = self.manifest.descendant
        executed, cost = told.get("executed_macs") or {}, told.get("cost") or {}
        found = executed.get(precision) if skips else cost.get("macs")
        return found if isinstance(found, int) else None

    def top1(self, precision: str) -> dict[str, Any] | None:
        """What was measured of a precision's accuracy, as plain values; None where nothing was."""
        found = self.manifest.accuracy.get(precision)
        return None if found is None else found.model_dump(mode="json")


def sample_file(inputs: np.ndarray, logits: Mapping[str, np.ndarray]) -> bytes:
    """Make the file that lets a board check itself; equal arrays give equal bytes.

    Args:
        inputs: (N, C, H, W) float32, ready for the network.
        logits: (N, classes) float32 per precision, as the exported file gave them.

    Returns:
        A safetensors file: eight bytes of header length, a JSON header, raw little-endian data. It
        can be read without any library.
    """
    tensors = {"input": np.ascontiguousarray(inputs, dtype=np.float32)}
    for precision, values in logits.items():
        tensors[f"logits.{precision}"] = np.ascontiguousarray(values, dtype=np.float32)
    return save(tensors)


def write_bundle(
    folder: Path, *, manifest_fields: Mapping[str, Any], files: Mapping[str, Path | bytes]
) -> Bundle:
    """Write a bundle, whole or not at all.

    It is put together beside ``folder``, read back, and only then takes the place of a bundle that
    was there. Equal input gives equal bytes.

    Args:
        folder: Where the bundle goes; its parents are made.
        manifest_fields: The fields of `Manifest` other than ``files`` and ``digest``.
        files: What goes in, by relative path with ``/``; the README and manifest are added.

    Returns:
        The bundle in its place.

    Raises:
        UserError: ``folder`` holds something else than a bundle, or the disk is full.
        ValueError: A path or a field is not one a bundle can have (``pydantic.ValidationError``).
    """
    _refuse_foreign(folder)
    for name in files:
        if not is_safe(name) or name in (MANIFEST, README):
            raise ValueError(f"{name!r} cannot be the path of a file in a bundle")
    plain = json.loads(canonical_json(dict(manifest_fields)))
    with explained(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _recover(folder)
        draft = folder.with_name(f".{folder.name}.{secrets.token_hex(TOKEN_DIGITS // 2)}.draft")
        try:
            draft.mkdir()
            entries = {name: _put(draft / name, files[name]) for name in sorted(files)}
            manifest = Manifest.model_validate_json(json.dumps(plain | {"files": _dump(entries)}))
            _check_references(manifest)
            text = readme(manifest)
            entries[README] = _put(draft / README, text.encode())
            manifest = manifest.model_copy(update={"files": dict(sorted(entries.items()))})
            _put(draft / MANIFEST, render(manifest))
            for path in [*draft.rglob("*"), draft]:
                if path.is_dir():
                    sync(path)
            load_bundle(draft)
            _replace(draft, folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return Bundle(folder, manifest.model_copy(update={"digest": digest(manifest)}))


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and compare every byte with its manifest.

    Raises:
        UserError: ``folder`` is not a bundle, or one of another version.
        CheckFailed: A file is missing, changed, a link, or not listed, or the manifest was changed
            or names a path outside the bundle.
    """
    manifest = read_manifest(folder)
    found = _walk(folder)
    for name in sorted(found - set(manifest.files) - {MANIFEST}):
        raise damaged(
            folder,
            name,
            "is not part of it",
            fix="Move it elsewhere: a bundle stays as it was made.",
        )
    for name, entry in manifest.files.items():
        path = folder / name
        if name not in found:
            raise damaged(folder, name, "is missing")
        size = path.stat().st_size
        if size != entry.bytes:
            raise damaged(folder, name, f"has {size} bytes instead of {entry.bytes}")
        if sha256_file(path) != entry.sha256:
            raise damaged(folder, name, "was changed")
    return Bundle(folder, manifest)


def _check_references(manifest: Manifest) -> None:
    named = list(manifest.models.values()) + ([manifest.sample.file] if manifest.sample else [])
    for name in named:
        if name not in manifest.files:
            raise ValueError(f"the manifest names {name}, which is not among the files")


def _walk(folder: Path) -> set[str]:
    """List all files; a link is not a file of a bundle, wherever it leads."""
    found: set[str] = set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise damaged(folder, name, "is a link or a device, not a plain file")
        if path.is_file():
            found.add(name)
    return found


def _dump(entries: Mapping[str, FileEntry]) -> dict[str, Any]:
    return {name: entry.model_dump() for name, entry in entries.items()}


def _put(path: Path, content: Path | bytes) -> FileEntry:
    """Write one file to the disk; scripts may be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hashed, size = hashlib.sha256(), 0
    with path.open("xb") as target:
        if isinstance(content, bytes):
            target.write(content)
            hashed.update(content)
            size = len(content)
        else:
            with content.open("rb") as source:
                while piece := source.read(1 << 20):
                    target.write(piece)
                    hashed.update(piece)
                    size += len(piece)
        target.flush()
        os.fsync(target.fileno())
    if path.suffix == ".sh":
        path.chmod(0o755)
    return FileEntry(bytes=size, sha256=hashed.hexdigest())


def _refuse_foreign(folder: Path) -> None:
    """Never put a bundle in the place of something that is not one."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    # A damaged bundle may be replaced; its manifest still says what it was.
    if not is_bundle(folder):
        raise UserError(
            f"The folder {folder} is not empty and not a bundle, so it is not replaced.",
            "Choose another output folder, or move what is in it away.",
        )


def _replace(draft: Path, folder: Path) -> None:
    """Give the draft its name; whatever fails on the way, one whole bundle keeps it."""
    if not folder.exists():
        os.rename(draft, folder)
        return
    aside = draft.with_suffix(".old")
    os.rename(folder, aside)
    try:
        os.rename(draft, folder)
    except BaseException:
        os.rename(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _recover(folder: Path) -> None:
    """Undo what a killed process left: put a bundle it had moved aside back, drop old drafts."""
    beside = f".{glob.escape(folder.name)}.{'?' * TOKEN_DIGITS}"
    for aside in sorted(folder.parent.glob(f"{beside}.old")):
        if not folder.exists():
            os.rename(aside, folder)
    for left in [*folder.parent.glob(f"{beside}.old"), *folder.parent.glob(f"{beside}.draft")]:
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
