"""ONNX files: read, and written so that equal models are equal bytes and none is half-written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

import elastic_export
from elastic_export.errors import CheckFailed, UserError

__all__ = ["load_model", "load_proto", "save_model", "write_atomically"]

PROTOBUF_LIMIT = 2**31 - 1
"""A protobuf message cannot be larger; beyond it ONNX would need a second file."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, creating its folder.

    Raises:
        UserError: The file cannot be written (no space, no permission); the message says why.
    """
    path = Path(path)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise UserError(
            f"{path} could not be written: {error.strerror or error}.",
            "Free some space or choose a folder that can be written to.",
        ) from error


def load_proto(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read an ONNX file.

    Args:
        path: The file.
        weights: Read those that lie in a file of their own as well.

    Raises:
        UserError: The file is missing, truncated or no ONNX model.
    """
    try:
        model = onnx.load(os.fspath(path), load_external_data=weights)
    except FileNotFoundError as error:
        raise UserError(
            f"There is no file {path}.",
            "Check the path; a bundle's folder has a dash where the target's name has a colon.",
        ) from error
    except Exception as error:  # by the file's ending onnx takes text and JSON too
        raise UserError(
            f"{path} cannot be read as an ONNX model.",
            "Check the path, or export the module again.",
        ) from error
    if not model.graph.node:
        raise UserError(
            f"{path} holds no ONNX graph.", "Check the path, or export the module again."
        )
    return model


def load_model(path: Path) -> ir.Model:
    """Read an ONNX file for editing (errors as ``load_proto``)."""
    return ir.from_proto(load_proto(path))


def save_model(model: ir.Model, path: Path) -> int:
    """Write a model as one file, atomically, with nothing in it that varies between runs.

    Returns:
        The size in bytes.

    Raises:
        CheckFailed: The model is larger than one protobuf file can be (2 GB).
        UserError: The file cannot be written.
    """
    model.producer_name = "elastic-export"
    model.producer_version = elastic_export.__version__
    model.metadata_props.clear()
    proto = ir.to_proto(model)
    size = proto.ByteSize()
    if size > PROTOBUF_LIMIT:
        raise CheckFailed(
            f"The model needs {size / 1e9:.1f} GB, and one ONNX file holds at most 2 GB.",
            "Export a smaller descendant.",
        )
    write_atomically(path, proto.SerializeToString(deterministic=True))
    return size
