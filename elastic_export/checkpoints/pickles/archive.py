"""Where the entries of a zip archive lie in its file.

Only what ``torch.save`` writes is understood: entries that are neither compressed nor encrypted.
They must lie inside the file, one after the other and each under a name of its own, so that no
archive can claim more than its size. Names are looked up and never used as paths.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from elastic_export.checkpoints.pickles.inert import UnreadableError

__all__ = ["Entry", "check_sum", "read_directory"]

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_LARGEST_DIRECTORY = 64 << 20
_CHUNK = 1 << 20
_BOMB = "claims more data than its size, which torch.save never writes"
_DAMAGED = "is cut off or damaged"


@dataclass(frozen=True)
class Entry:
    """One file of an archive.

    Attributes:
        name: Its name in the archive.
        offset: Where its bytes begin in the archive's file.
        size: How many there are.
        crc: Their check sum; 0 where none was written.
    """

    name: str
    offset: int
    size: int
    crc: int


def read_directory(path: Path) -> dict[str, Entry]:
    """Find all entries of an archive.

    Raises:
        UnreadableError: It is damaged, or holds what ``torch.save`` never writes.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            found = [_located(file, size, *raw) for raw in _directory(file, size)]
    except (struct.error, UnicodeDecodeError) as error:
        raise UnreadableError(_DAMAGED) from error
    end = 0
    for entry in sorted(found, key=lambda e: (e.offset, e.size)):
        if entry.offset < end or entry.offset + entry.size > size:
            raise UnreadableError(_BOMB, "Do not use this file.")
        end = entry.offset + entry.size
    named = {entry.name: entry for entry in found}
    if len(named) != len(found):
        raise UnreadableError(
            "holds two entries of one name, which torch.save never writes", "Do not use this file."
        )
    return named


def check_sum(file: BinaryIO, entry: Entry) -> None:
    """Compare an entry with its check sum, a piece at a time.

    Raises:
        UnreadableError: It was changed after it was written.
    """
    if not entry.crc:
        return
    file.seek(entry.offset)
    found, left = 0, entry.size
    while left:
        piece = file.read(min(left, _CHUNK))
        if not piece:
            raise UnreadableError(_DAMAGED)
        found, left = zlib.crc32(piece, found), left - len(piece)
    if found != entry.crc:
        raise UnreadableError("is cut off or damaged: a check sum does not match")


def _directory(file: BinaryIO, size: int) -> list[tuple[str, int, int, int]]:
    """Name, place of the local header, size and check sum of every entry."""
    count, length, start = _end(file, size)
    if length > _LARGEST_DIRECTORY:
        raise UnreadableError("lists more entries than a checkpoint has any use for")
    if start + length > size or count * 46 > length:
        raise UnreadableError(_DAMAGED)
    file.seek(start)
    data = file.read(length)
    found, at = [], 0
    for _ in range(count):
        (
            magic,
            flags,
            method,
            crc,
            packed,
            unpacked,
            name_size,
            extra_size,
            comment_size,
            place,
        ) = struct.unpack_from("<4s4xHH4xIIIHHH8xI", data, at)
        if magic != b"PK\x01\x02":
            raise UnreadableError(_DAMAGED)
        name = data[at + 46 : at + 46 + name_size].decode("utf-8")
        extra = data[at + 46 + name_size : at + 46 + name_size + extra_size]
        unpacked, packed, place = _wide(extra, unpacked, packed, place)
        if flags & 1:
            raise UnreadableError("is encrypted", "Decrypt it first.")
        if method or packed != unpacked:
            raise UnreadableError(
                _BOMB, "If you trust the file, load and save it with torch on a machine of its own."
            )
        found.append((name, place, unpacked, crc))
        at += 46 + name_size + extra_size + comment_size
    return found


def _end(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Number of entries, size and place of the directory, from the archive's last record."""
    start = max(0, size - 22 - 0xFFFF)
    file.seek(start)
    tail = file.read(size - start)
    at = tail.rfind(_END)
    if at < 0:
        raise UnreadableError(_DAMAGED)
    count, length, place = struct.unpack_from("<H2I", tail, at + 10)
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        (place64,) = struct.unpack_from("<Q", tail, at - 12)
        if place64 + 56 > size:
            raise UnreadableError(_DAMAGED)
        file.seek(place64)
        magic, count, length, place = struct.unpack("<4s28x3Q", file.read(56))
        if magic != _END64:
            raise UnreadableError(_DAMAGED)
    return count, length, place


def _wide(extra: bytes, *values: int) -> list[int]:
    """Replace values that did not fit 32 bits by those of the zip64 field."""
    wide, at = list(values), 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        at += 4
        if kind == 1:
            field = at
            for index, value in enumerate(wide):
                if value == 0xFFFFFFFF:
                    (wide[index],) = struct.unpack_from("<Q", extra[: at + length], field)
                    field += 8
        at += length
    return wide


def _located(file: BinaryIO, size: int, name: str, place: int, length: int, crc: int) -> Entry:
    if place + 30 > size:
        raise UnreadableError(_DAMAGED)
    file.seek(place)
    magic, name_size, extra_size = struct.unpack("<4s22xHH", file.read(30))
    if magic != b"PK\x03\x04" or file.read(name_size) != name.encode():
        raise UnreadableError(_DAMAGED)
    return Entry(name, place + 30 + name_size + extra_size, length, crc)
