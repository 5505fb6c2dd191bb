"""The manifest of a bundle: its schema, its one written form, and its reading with distrust."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from elastic_export.artifacts.digest import sha256_json
from elastic_export.config.base import Schema
from elastic_export.config.result import Accuracy
from elastic_export.config.transform import Transform
from elastic_export.errors import CheckFailed, UserError

__all__ = [
    "KIND",
    "MANIFEST",
    "FileEntry",
    "Manifest",
    "Port",
    "Runtime",
    "Sample",
    "damaged",
    "digest",
    "is_bundle",
    "is_safe",
    "read_manifest",
    "render",
]

MANIFEST = "manifest.json"
KIND = "elastic-export bundle"
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
MAX_BYTES = 16 << 20
_AGAIN = "Copy the bundle again from where it was built, or build it again."


class FileEntry(Schema):
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


class Port(Schema):
    """One input or output of the networks; a dimension that may vary is a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Runtime(Schema):
    """What executes the models on the target."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    version: str | None = None


class Sample(Schema):
    """Expected behaviour: a safetensors file with ``input`` and ``logits.PRECISION`` tensors.

    ``tolerance`` bounds, per precision, the largest difference of logits relative to the largest
    logit that another runtime may show.
    """

    file: str
    images: int
    tolerance: dict[str, float] = Field(default_factory=dict)


class Manifest(Schema):
    """What a bundle holds. ``models`` maps a precision to its ONNX file.

    ``descendant`` tells the network (family, config, spec), ``provenance`` what it was made from,
    ``checks`` which post-conditions held, ``digest`` guards the manifest itself.
    """

    kind: Literal["elastic-export bundle"] = "elastic-export bundle"
    schema_version: Literal[1] = 1
    name: str
    target: str
    runtime: Runtime
    models: dict[str, str]
    chosen: str | None = None
    descendant: dict[str, Any]
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    transform: Transform
    sample: Sample | None = None
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    checks: dict[str, Any] = Field(default_factory=dict)
    engines: dict[str, dict[str, Any]] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    files: dict[str, FileEntry] = Field(default_factory=dict)
    digest: str = ""


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest itself, not the files it lists.

    Raises:
        UserError: ``folder`` is not a bundle, or one of another version.
        CheckFailed: The manifest was changed, or names a path outside the bundle.
    """
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise _not_a_bundle(
            folder, f"it has no {MANIFEST}" if folder.is_dir() else "no such folder"
        )
    if path.stat().st_size > MAX_BYTES:
        raise damaged(folder, MANIFEST, "is too large for a manifest")
    raw = path.read_bytes()
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        raise damaged(folder, MANIFEST, "is not whole JSON") from None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise _not_a_bundle(folder, f"its {MANIFEST} describes something else")
    if data.get("schema_version") != 1:
        raise UserError(
            f"The bundle {folder} has schema_version {data.get('schema_version')!r}, but this "
            "version of elastic-export reads 1.",
            "Read it with the version of elastic-export that wrote it.",
        )
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise damaged(folder, MANIFEST, f'is wrong at "{where}"') from error
    for name in manifest.files:
        if not is_safe(name) or name == MANIFEST:
            raise damaged(folder, MANIFEST, f"lists the path {name!r}, which it must not")
    # Written form and digest together: no byte of the manifest can change unnoticed.
    if manifest.digest != digest(manifest) or raw != render(manifest):
        raise damaged(folder, MANIFEST, "was changed")
    return manifest


def _not_a_bundle(folder: Path, why: str) -> UserError:
    return UserError(
        f"{folder} is not a bundle: {why}.",
        "Give one of the folders that elastic-export build wrote for a descendant and a target.",
    )


def damaged(folder: Path, name: str, how: str, *, fix: str = _AGAIN) -> CheckFailed:
    """Say which file of a bundle is wrong and how."""
    return CheckFailed(f"In the bundle {folder} the file {name} {how}.", fix)


def is_bundle(folder: Path) -> bool:
    """Tell whether a folder says that it is a bundle, a damaged one included."""
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes()).get("kind") == KIND)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def is_safe(name: str) -> bool:
    """Tell whether a path is relative, stays below its folder and means the same everywhere."""
    return all(PART.fullmatch(part) for part in name.split("/"))


def digest(manifest: Manifest) -> str:
    """Return the SHA-256 of the manifest without its own ``digest``."""
    return sha256_json(manifest.model_copy(update={"digest": ""}))


def render(manifest: Manifest) -> bytes:
    """Write the manifest in its one form, with its digest."""
    data = manifest.model_dump(mode="json") | {"digest": digest(manifest)}
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
