"""Reading a foreign checkpoint without ever running what is in it.

Safetensors files and both formats of ``torch.save`` are read; zip archives and safetensors are
mapped into memory, so that time and memory are bounded by the size of the file. Known records of
settings become plain dicts, other objects in a pickle become an :class:`Opaque`, which says what it
stands for when somebody needs it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from elastic_export.checkpoints.pickles.archive import check_sum, read_directory
from elastic_export.checkpoints.pickles.content import check_content
from elastic_export.checkpoints.pickles.inert import (
    SAVE_STATE_DICT,
    Budget,
    Opaque,
    UnreadableError,
    printable,
)
from elastic_export.checkpoints.pickles.storages import LegacyStorages, MappedStorages
from elastic_export.checkpoints.pickles.unpickle import Machine
from elastic_export.errors import UserError

__all__ = ["LoadedCheckpoint", "StateDict", "load_tensors", "state_dict_of"]

PICKLE_LIMIT = 64 << 20
"""Largest pickle that is read, in bytes; a tensor takes some 150, its values lie outside."""
OBJECT_LIMIT = 512 << 20
"""About how much memory the objects of a pickle may take, beside the tensors' values."""

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_PICKLED = "data.pkl"
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
_LEGACY_NUMBER = int.from_bytes(_LEGACY_MAGIC, "little")
_LEGACY_PROTOCOL = 1001
_LARGEST_HEADER = 64 << 20
_AGAIN = "Copy or download the file again and compare its size with the source."


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A file's content: nested dicts, lists and tuples of tensors and plain values.

    Args:
        path: The file.
        format: ``safetensors``, ``torch-zip`` or ``torch-legacy``.
        content: What it holds; tensors lie on the CPU and may be views of the mapped file.
        metadata: Text entries of a safetensors header.
    """

    path: Path
    format: str
    content: Any
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StateDict:
    """The tensors of one network.

    Args:
        tensors: Parameter or buffer name to tensor, without a leading ``module.``.
        name: Which collection of the file they are; empty if the file is nothing else.
        collections: All collections of tensors in the file.
        others: Top-level keys of the file that hold anything else.
    """

    tensors: dict[str, Tensor]
    name: str
    collections: tuple[str, ...]
    others: tuple[str, ...]


def load_tensors(path: Path) -> LoadedCheckpoint:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        UserError: the file is missing, empty, cut off, no checkpoint, holds classes or functions
            (they are named), or claims tensors larger than it is.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder.", "Give the checkpoint file in it.")
    if not path.is_file():
        raise UserError(f"There is no file {path}.", "Check the path of the checkpoint.")
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", "Check its permissions."
        ) from error
    if not head:
        raise UserError(f"{path} is empty.", _AGAIN)
    try:
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            loaded = _read_safetensors(path)
        elif head.startswith(_ZIP):
            loaded = LoadedCheckpoint(path, "torch-zip", _read_zip(path))
        elif head.startswith(_PICKLE):
            loaded = LoadedCheckpoint(path, "torch-legacy", _read_legacy(path, head))
        else:
            raise _no_checkpoint(path)
        check_content(loaded.content, path.stat().st_size)
    except UnreadableError as error:
        raise UserError(f"{path} {error.what}.", error.fix or _AGAIN) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", _AGAIN) from error
    return loaded


def state_dict_of(
    loaded: LoadedCheckpoint, prefer: Sequence[str] = ("model_ema", "state_dict", "model")
) -> StateDict:
    """Find the tensors of the network in a checkpoint.

    Args:
        loaded: What ``load_tensors`` read.
        prefer: Names of collections, the most wanted first.

    Raises:
        UserError: there is none, there are several of which none is preferred, or a tensor holds
            NaN or infinite values.
    """
    content = loaded.content
    if isinstance(content, Opaque):
        raise UserError(f"{loaded.path} holds {content.describe()}.", SAVE_STATE_DICT)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{loaded.path} holds a {type(content).__name__}, where a dictionary of named tensors "
            "is needed.",
            "Save the model's state_dict.",
        )
    found = {str(key): value for key, value in content.items() if _is_collection(value)}
    direct = {str(key): value for key, value in content.items() if _is_tensor(value)}
    if direct:
        found = {"": direct, **found}
    name = _choose(loaded, found, prefer)
    tensors = _stripped(found[name])
    for key, tensor in tensors.items():
        if isinstance(tensor, Opaque):
            raise UserError(
                f'The tensor "{key}" of {loaded.path} is {tensor.describe()}.',
                "Save a checkpoint with dense, unquantized tensors.",
            )
        if not _is_finite(tensor):
            raise UserError(
                f'The tensor "{key}" of {loaded.path} holds NaN or infinite values.',
                "Use a checkpoint from before the training diverged.",
            )
    others = [str(key) for key, v in content.items() if not _is_tensor(v)]
    return StateDict(
        tensors,
        name,
        tuple(found),
        tuple(key for key in others if key not in found),
    )


def _read_safetensors(path: Path) -> LoadedCheckpoint:
    with path.open("rb") as stream:
        head = stream.read(8)
    if len(head) == 8 and struct.unpack("<Q", head)[0] > _LARGEST_HEADER:
        raise UnreadableError("is not a complete safetensors file: its header is too large")
    try:
        with safe_open(path, framework="pt") as file:
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return LoadedCheckpoint(path, "safetensors", content, file.metadata() or {})
    except Exception as error:  # safetensors raises whatever its parser and torch raise
        reason = printable(str(error)).rstrip(".")
        raise UnreadableError(f"is not a complete safetensors file: {reason}") from error


def _read_zip(path: Path) -> Any:
    entries = read_directory(path)
    stems = [name[: -len(_PICKLED)] for name in entries if _is_pickle(name)]
    if any(name.endswith("constants.pkl") for name in entries):
        raise UnreadableError("is a TorchScript program, not a checkpoint", SAVE_STATE_DICT)
    if len(stems) != 1:
        raise _no_checkpoint(path)
    pickled = entries[stems[0] + _PICKLED]
    if pickled.size > PICKLE_LIMIT:
        raise UnreadableError(
            f"describes its tensors in {pickled.size >> 20} MiB, where {PICKLE_LIMIT >> 20} MiB is "
            "the most that is read",
            SAVE_STATE_DICT,
        )
    with path.open("rb") as file:
        check_sum(file, pickled)
        file.seek(pickled.offset)
        data = file.read(pickled.size)
        order = entries.get(f"{stems[0]}byteorder")
        if order is not None:
            file.seek(order.offset)
            if file.read(min(order.size, 8)) != b"little":
                raise UnreadableError("was written by a big-endian machine", SAVE_STATE_DICT)
    storages = MappedStorages(path, entries, stems[0])
    return Machine(data, Budget(OBJECT_LIMIT), storages.find).load()


def _is_pickle(name: str) -> bool:
    return name == _PICKLED or name.endswith(f"/{_PICKLED}")


def _read_legacy(path: Path, head: bytes) -> Any:
    with path.open("rb") as file:
        storages = LegacyStorages(path.stat().st_size)
        machine = Machine(file.read(PICKLE_LIMIT), Budget(OBJECT_LIMIT), storages.find)
        if _LEGACY_MAGIC not in head:
            raise _bare_pickle(path, machine)
        if machine.load() != _LEGACY_NUMBER or machine.load() != _LEGACY_PROTOCOL:
            raise UnreadableError("is of an unknown version of torch.save", SAVE_STATE_DICT)
        system = machine.load()
        if not isinstance(system, dict) or not system.get("little_endian", True):
            raise UnreadableError("was written by a big-endian machine", SAVE_STATE_DICT)
        content = machine.load()
        keys = machine.load()
        file.seek(machine.position)
        storages.fill(file, keys)
        return content


def _bare_pickle(path: Path, machine: Machine) -> Exception:
    """Why a pickle that torch did not write is refused; one that is there to harm is named."""
    try:
        machine.load()
    except UnreadableError as error:
        if "could run code" in error.what:
            return error
    return _no_checkpoint(path)


def _no_checkpoint(path: Path) -> UserError:
    return UserError(
        f"{path} is not a checkpoint: neither safetensors nor written by torch.save.",
        "Give a .safetensors, .pth or .pt file.",
    )


def _is_collection(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and _is_tensor(v) for k, v in value.items())
    )


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Opaque) and value.kind == "tensor")


def _choose(
    loaded: LoadedCheckpoint, found: Mapping[str, Mapping[str, Tensor]], prefer: Sequence[str]
) -> str:
    path = loaded.path
    for name in prefer:
        if name in found:
            return name
    if not found:
        for key, value in loaded.content.items():
            if isinstance(value, Opaque) and value.kind == "network":
                raise UserError(f'"{key}" of {path} is {value.describe()}.', SAVE_STATE_DICT)
        raise UserError(
            f"{path} holds no dictionary of named tensors.", "Save the model's state_dict."
        )
    if len(found) > 1 and "" not in found:
        raise UserError(
            f"{path} holds several networks: {', '.join(found)}.",
            "Save the one that is wanted into a file of its own.",
        )
    return next(iter(found))


def _stripped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the ``module.`` that DataParallel puts before every name."""
    prefix = "module."
    if all(name.startswith(prefix) for name in tensors):
        return {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()
    bounds = torch.aminmax(tensor)
    return math.isfinite(float(bounds.min)) and math.isfinite(float(bounds.max))
