"""The bundle the script lies in: its manifest, its files checked byte by byte, its device plan."""

import hashlib
import json
import os
from typing import Any, Dict, List, Optional

from elastic_export.measure.board.shell import Cannot

__all__ = ["BoardBundle", "open_bundle"]

MANIFEST = "manifest.json"
PLAN = "device.json"
KIND = "elastic-export bundle"
AGAIN = "Copy the bundle to the board again."


class Damaged(Cannot):
    """A bundle that is not as it was built; the same exit code as ``elastic-export`` gives."""

    exit_code = 3


class BoardBundle:
    """A bundle whose files are whole.

    ``plan`` is what ``device.json`` says: for each precision the releases of TensorRT its file can
    be built with, and trtexec's arguments for each.
    """

    def __init__(self, folder: str, manifest: Dict[str, Any], plan: Dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.plan = plan

    @property
    def name(self) -> str:
        """The network's name; bundles measured together need different ones."""
        return str(self.manifest["name"])

    @property
    def runtime(self) -> str:
        """What it is made for: ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``."""
        return str((self.manifest.get("runtime") or {}).get("name"))

    @property
    def precisions(self) -> List[str]:
        """Precisions the bundle has a model for."""
        return list(self.manifest["models"])

    def model(self, precision: str) -> str:
        """Return the path of a precision's ONNX file.

        Raises:
            Cannot: there is none.
        """
        name = self.manifest["models"].get(precision)
        if name is None:
            raise Cannot(
                "The bundle {} has no {} model.".format(self.name, precision),
                "It has: {}.".format(", ".join(self.precisions)),
            )
        return os.path.join(self.folder, name)

    def digest(self, precision: str) -> str:
        """Return the SHA-256 of a precision's ONNX file."""
        return str(self.manifest["files"][self.manifest["models"][precision]]["sha256"])

    @property
    def batch_size(self) -> int:
        """How many images one inference takes."""
        return int(self.manifest["inputs"][0]["shape"][0])

    @property
    def sample(self) -> Optional[str]:
        """The path of the sample file, None where the bundle has none."""
        sample = self.manifest.get("sample")
        return None if sample is None else os.path.join(self.folder, sample["file"])

    def tolerance(self, precision: str) -> float:
        """Return the largest relative difference of logits that is allowed."""
        sample = self.manifest.get("sample") or {}
        return float((sample.get("tolerance") or {}).get(precision, 0.0))


def open_bundle(folder: str) -> BoardBundle:
    """Read a bundle and compare every file with its manifest.

    Raises:
        Cannot: it is no bundle.
        Damaged: a file is missing or was changed.
    """
    manifest = _json(os.path.join(folder, MANIFEST))
    if manifest.get("kind") != KIND or manifest.get("schema_version") != 1:
        raise Cannot("{} is not a bundle this script can read.".format(folder), AGAIN)
    for name, entry in sorted(manifest.get("files", {}).items()):
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise Damaged("In the bundle {} the file {} is missing.".format(folder, name), AGAIN)
        if os.path.getsize(path) != entry["bytes"] or _sha256(path) != entry["sha256"]:
            raise Damaged("In the bundle {} the file {} was changed.".format(folder, name), AGAIN)
    plan_path = os.path.join(folder, PLAN)
    plan = _json(plan_path) if os.path.isfile(plan_path) else {}
    return BoardBundle(folder, manifest, plan)


def _json(path: str) -> Dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError) as error:
        raise Cannot("{} cannot be read: {}.".format(path, error), AGAIN)
    if not isinstance(content, dict):
        raise Cannot("{} does not hold what it should.".format(path), AGAIN)
    return content


def _sha256(path: str) -> str:
    state = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            state.update(piece)
    return state.hexdigest()
