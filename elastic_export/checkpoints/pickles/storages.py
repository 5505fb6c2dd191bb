"""The values of tensors: mapped from the entries of an archive, or read from behind a pickle."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, UntypedStorage

from elastic_export.checkpoints.pickles.archive import Entry, check_sum
from elastic_export.checkpoints.pickles.inert import Opaque, UnreadableError

__all__ = ["LegacyStorages", "MappedStorages", "Storage", "StorageKind", "tensor_of"]

_CLAIMS = "is cut off or damaged, or claims tensors it does not hold"
_MOST_DIMS = 32


class StorageKind(Opaque):
    """A storage class by name, such as ``torch.FloatStorage``, and the dtype it means."""

    __slots__ = ("dtype",)

    def __init__(self, class_name: str, dtype: torch.dtype) -> None:
        super().__init__(class_name, "name")
        self.dtype = dtype


class Storage(Opaque):
    """Bytes in memory with a dtype; inert where it lies in a file without a tensor around it."""

    __slots__ = ("dtype", "untyped")

    def __init__(self, untyped: UntypedStorage, dtype: torch.dtype) -> None:
        super().__init__("torch.storage", "object")
        self.untyped = untyped
        self.dtype = dtype


def tensor_of(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
    """View a storage as a tensor, inside its bounds.

    Args:
        storage: What a persistent id gave.
        dtype: Of the elements; None for the storage's.
        offset: Of the first element.
        shape: Elements per dimension.
        stride: Steps per dimension, in elements.

    Raises:
        UnreadableError: The elements do not lie in the storage.
    """
    dtype = storage.dtype if dtype is None and isinstance(storage, Storage) else dtype
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise UnreadableError(_CLAIMS)
    whole = (offset, *shape, *stride)
    if any(type(n) is not int or not 0 <= n < 1 << 48 for n in whole):
        raise UnreadableError(_CLAIMS)
    if len(shape) != len(stride) or len(shape) > _MOST_DIMS:
        raise UnreadableError(_CLAIMS)
    count = 1
    for n in shape:
        count *= n
        if count > 1 << 60:
            raise UnreadableError(_CLAIMS)
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if (last + 1) * dtype.itemsize > storage.untyped.nbytes():
        raise UnreadableError(_CLAIMS)
    return torch.empty(0, dtype=dtype).set_(storage.untyped, offset, tuple(shape), tuple(stride))


class MappedStorages:
    """The storages of an archive, mapped into memory when first asked for.

    Args:
        path: The archive.
        entries: Its entries.
        stem: What precedes ``data/`` in their names.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry], stem: str) -> None:
        self._path = path
        self._entries = entries
        self._stem = stem
        self._mapped: UntypedStorage | None = None
        self._known: dict[str, UntypedStorage] = {}

    def find(self, saved: Any) -> Storage:
        """The storage a persistent id names: ``("storage", kind, key, location, elements)``.

        Raises:
            UnreadableError: The archive does not hold it.
        """
        kind, key, size = _storage_id(saved, 5)
        entry = self._entries.get(f"{self._stem}data/{key}") if isinstance(key, str) else None
        if entry is None or size > entry.size:
            raise UnreadableError(_CLAIMS)
        if key not in self._known:
            self._known[key] = self._map(entry, kind.dtype.itemsize)
        return Storage(self._known[key], kind.dtype)

    def _map(self, entry: Entry, alignment: int) -> UntypedStorage:
        if entry.size == 0:
            return UntypedStorage(0)
        with self._path.open("rb") as file:
            check_sum(file, entry)
        if self._mapped is None:
            size = self._path.stat().st_size
            self._mapped = cast(
                UntypedStorage, UntypedStorage.from_file(str(self._path), False, size)
            )
        part = self._mapped[entry.offset : entry.offset + entry.size]
        # torch.save aligns; the kernels need not cope with what others wrote.
        return part.clone() if entry.offset % max(alignment, 8) else part


class LegacyStorages:
    """The storages of the older format, which follow the pickles in the order of a list of keys.

    Args:
        size: Of the file; the storages together may not claim more.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._known: dict[Any, tuple[UntypedStorage, int]] = {}

    def find(self, saved: Any) -> Any:
        """The storage a persistent id names, whose values :meth:`fill` brings.

        Raises:
            UnreadableError: It is larger than the file.
        """
        if isinstance(saved, tuple) and len(saved) == 4 and saved[0] == "module":
            return saved[1]  # a class with its source, which the class's name stands for
        kind, key, size = _storage_id(saved, 6)
        if not isinstance(key, (str, int)):
            raise UnreadableError(_CLAIMS)
        if key not in self._known:
            self._left -= size
            if self._left < 0:
                raise UnreadableError(_CLAIMS)
            self._known[key] = (UntypedStorage(size), kind.dtype.itemsize)
        untyped = self._known[key][0]
        if size > untyped.nbytes():
            raise UnreadableError(_CLAIMS)
        if saved[5] is not None:
            untyped = _part(untyped, saved[5], kind.dtype.itemsize)
        return Storage(untyped, kind.dtype)

    def fill(self, file: BinaryIO, keys: Any) -> None:
        """Read the values of all storages from a file that is positioned at the first.

        Raises:
            UnreadableError: The file ends before, or a storage is missing.
        """
        if type(keys) is not list or len(keys) != len(self._known):
            raise UnreadableError(_CLAIMS)
        waiting = dict(self._known)
        for key in keys:
            found = waiting.pop(key, None) if isinstance(key, (str, int)) else None
            if found is None:
                raise UnreadableError(_CLAIMS)
            untyped, itemsize = found
            head = file.read(8)
            if len(head) < 8 or struct.unpack("<q", head)[0] * itemsize != untyped.nbytes():
                raise UnreadableError(_CLAIMS)
            values = torch.empty(0, dtype=torch.uint8).set_(untyped)
            if untyped.nbytes() and file.readinto(values.numpy()) < untyped.nbytes():  # type: ignore[attr-defined]
                raise UnreadableError(_CLAIMS)


def _storage_id(saved: Any, length: int) -> tuple[StorageKind, Any, int]:
    """Kind, key and size in bytes of a persistent id."""
    if not isinstance(saved, tuple) or len(saved) != length or saved[0] != "storage":
        raise UnreadableError(_CLAIMS)
    kind, key, count = saved[1], saved[2], saved[4]
    if not isinstance(kind, StorageKind) or type(count) is not int or not 0 <= count < 1 << 48:
        raise UnreadableError(_CLAIMS)
    return kind, key, count * kind.dtype.itemsize


def _part(untyped: UntypedStorage, view: Sequence[Any], itemsize: int) -> UntypedStorage:
    """The part of a storage that older versions of torch stored as a view of it."""
    if not isinstance(view, tuple) or len(view) != 3:
        raise UnreadableError(_CLAIMS)
    offset, count = view[1], view[2]
    if type(offset) is not int or type(count) is not int or offset < 0 or count < 0:
        raise UnreadableError(_CLAIMS)
    if (offset + count) * itemsize > untyped.nbytes():
        raise UnreadableError(_CLAIMS)
    return untyped[offset * itemsize : (offset + count) * itemsize]
