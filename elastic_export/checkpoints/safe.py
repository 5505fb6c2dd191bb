"""Reading a foreign checkpoint without ever running what is in it.

Safetensors files and both formats of ``torch.save`` are read; zip archives and safetensors are
mapped into memory, so that time and memory are bounded by the size of the file. Whatever a pickle
holds beyond tensors, containers and plain values is refused by name.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elastic_export.checkpoints.pickles import foreign_globals, scan_globals
from elastic_export.errors import UserError

__all__ = ["LoadedCheckpoint", "StateDict", "load_tensors", "state_dict_of"]

PICKLE_LIMIT = 64 << 20
"""Largest pickle that is read, in bytes; a tensor takes some 150, its values lie outside."""
REPEATS = 8
"""How many times its own size a file may hold in tensors that share their values."""

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
_LEGACY_PICKLES = 5
_AGAIN = "Copy or download the file again and compare its size with the source."
_RESAVE = (
    "If you trust the file, load it where it was written and save only its state_dict: "
    "torch.save(model.state_dict(), path)."
)


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
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        loaded = _read_safetensors(path)
    elif head.startswith(_ZIP):
        loaded = LoadedCheckpoint(path, "torch-zip", _read_zip(path))
    elif head.startswith(_PICKLE):
        loaded = LoadedCheckpoint(path, "torch-legacy", _read_legacy(path, head))
    else:
        raise _no_checkpoint(path)
    _check_content(loaded)
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
    if not isinstance(content, Mapping):
        raise UserError(
            f"{loaded.path} holds a {type(content).__name__}, where a dictionary of named tensors "
            "is needed.",
            "Save the model's state_dict.",
        )
    found = {str(key): value for key, value in content.items() if _is_collection(value)}
    direct = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if direct:
        found = {"": direct, **found}
    name = _choose(loaded.path, found, prefer)
    tensors = {key: value.detach() for key, value in _stripped(found[name]).items()}
    for key, tensor in tensors.items():
        if not _is_finite(tensor):
            raise UserError(
                f'The tensor "{key}" of {loaded.path} holds NaN or infinite values.',
                "Use a checkpoint from before the training diverged.",
            )
    others = [str(key) for key, v in content.items() if not isinstance(v, Tensor)]
    return StateDict(
        tensors,
        name,
        tuple(found),
        tuple(key for key in others if key not in found),
    )


def _read_safetensors(path: Path) -> LoadedCheckpoint:
    try:
        with safe_open(path, framework="pt") as file:
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return LoadedCheckpoint(path, "safetensors", content, file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a complete safetensors file: {error}.", _AGAIN) from error


def _read_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            stems = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
            if any(name.endswith("constants.pkl") for name in names):
                raise UserError(f"{path} is a TorchScript program, not a checkpoint.", _RESAVE)
            if len(stems) != 1:
                raise _no_checkpoint(path)
            packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(
                    f"{path} claims more data than its size, which torch.save never writes.",
                    "Do not use this file.",
                )
            size = archive.getinfo(stems[0]).file_size
            _check_pickle_size(path, size)
            _refuse_foreign(path, archive.read(stems[0]), 1)
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path} is cut off or damaged.", _AGAIN) from error
    return _torch_load(path, mmap=True)


def _read_legacy(path: Path, head: bytes) -> Any:
    with path.open("rb") as stream:
        start = stream.read(PICKLE_LIMIT)
    if _LEGACY_MAGIC not in head:
        _refuse_foreign(path, start, 1)
        raise _no_checkpoint(path)
    _refuse_foreign(path, start, _LEGACY_PICKLES)
    return _torch_load(path, mmap=False)


def _check_pickle_size(path: Path, size: int) -> None:
    if size > PICKLE_LIMIT:
        raise UserError(
            f"{path} describes its tensors in {size >> 20} MiB, where {PICKLE_LIMIT >> 20} MiB is "
            "the most that is read.",
            _RESAVE,
        )


def _refuse_foreign(path: Path, data: bytes, pickles: int) -> None:
    """Stop at classes and functions; a restricted reader for known ones would come in here."""
    try:
        foreign = foreign_globals(scan_globals(io.BytesIO(data), pickles))
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        if pickles == 1 and not data.startswith(_PICKLE):
            raise _no_checkpoint(path) from error
        raise UserError(f"{path} is cut off or damaged.", _AGAIN) from error
    if foreign:
        listed = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise UserError(
            f"{path} holds Python objects that could run code when loaded: {listed}.", _RESAVE
        )


def _torch_load(path: Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[-1]
        raise UserError(f"{path} cannot be read safely: {reason}", _RESAVE) from error
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, EOFError, OSError) as error:
        raise UserError(
            f"{path} is cut off or damaged, or claims tensors it does not hold.", _AGAIN
        ) from error
    except (AttributeError, AssertionError, MemoryError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}.", _AGAIN) from error


def _no_checkpoint(path: Path) -> UserError:
    return UserError(
        f"{path} is not a checkpoint: neither safetensors nor written by torch.save.",
        "Give a .safetensors, .pth or .pt file.",
    )


def _check_content(loaded: LoadedCheckpoint) -> None:
    """Refuse sizes beyond the file's: expanded views cost no bytes there, but do here."""
    size = loaded.path.stat().st_size
    total = 0
    for name, value in _leaves(loaded.content):
        if not isinstance(value, Tensor):
            continue
        claimed = value.numel() * value.element_size()
        total += claimed
        if claimed > size or total > REPEATS * size:
            raise UserError(
                f'The tensor "{name}" of {loaded.path} claims {claimed} bytes, but the file has '
                f"{size}.",
                "Do not use this file, or save it again with contiguous tensors.",
            )


def _leaves(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value that is no container, with its path; each container once."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", content)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, Mapping):
            items: Iterator[tuple[Any, Any]] = iter(value.items())
        elif isinstance(value, (list, tuple, set)):
            items = iter(enumerate(value))
        else:
            yield name, value
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        stack.extend((f"{name}.{key}" if name else str(key), item) for key, item in items)


def _is_collection(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _choose(path: Path, found: Mapping[str, Mapping[str, Tensor]], prefer: Sequence[str]) -> str:
    for name in prefer:
        if name in found:
            return name
    if not found:
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
