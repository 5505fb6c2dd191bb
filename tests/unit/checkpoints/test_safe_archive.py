from __future__ import annotations

import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from elastic_export.checkpoints.pickles.archive import read_directory
from elastic_export.checkpoints.safe import load_tensors

_NOTHING = b"\x80\x02}."


def _changed(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def _directory(data: bytes | bytearray) -> int:
    return data.index(b"PK\x01\x02")


def test_the_directory_is_the_one_zipfile_reads(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"a": torch.ones(1000), "é": torch.ones(3)}, path)
    with zipfile.ZipFile(path) as archive:
        wanted = {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}
        texts = {name: archive.read(name) for name in wanted}
    found = read_directory(path)
    assert {entry.name: (entry.size, entry.crc) for entry in found.values()} == wanted
    data = path.read_bytes()
    for name, entry in found.items():
        assert data[entry.offset : entry.offset + entry.size] == texts[name]


def test_wide_entries_and_comments(forge: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (("net/data.pkl", b"\x80\x02}."), ("net/data/0", b"1234")):
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(text)
        archive.comment = b"made elsewhere"
    assert load_tensors(path).content == {}


def test_two_entries_of_one_name(forge: Any, tmp_path: Path) -> None:
    path = forge.zipped(tmp_path / "net.pt", _NOTHING)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("net/data.pkl", b"\x80\x02N.")
    assert "two entries of one name" in forge.refused(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries(forge: Any, tmp_path: Path, method: int) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("net/data.pkl", _NOTHING + bytes(10_000_000))
    assert "claims more data than its size" in forge.refused(path)


def test_entries_that_overlap(forge: Any, tmp_path: Path) -> None:
    """A thousand entries that share the same bytes, as some archive bombs do."""
    path = forge.zipped(tmp_path / "net.pt", _NOTHING, {"0": bytes(1000), "1": bytes(1000)})

    def overlap(data: bytearray) -> None:
        end = data.rindex(b"PK\x05\x06")
        last = data.rindex(b"PK\x01\x02")
        entry = bytes(data[last:end])
        local = struct.unpack_from("<I", entry, 42)[0]
        data[local + 39 : local + 40] = b"2"  # the name in the local header
        data[end:end] = entry.replace(b"data/1", b"data/2")
        count, size = struct.unpack_from("<HI", data, end + len(entry) + 10)
        struct.pack_into(
            "<HHI", data, end + len(entry) + 8, count + 1, count + 1, size + len(entry)
        )

    assert forge.refused(_changed(path, overlap))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (8, b"\x01\x00"),  # encrypted
        (10, b"\x08\x00"),  # compressed
        (16, b"\x01\x02\x03\x04"),  # check sum
        (20, b"\xff\xff\xff\x7f"),  # packed size
        (24, b"\xff\xff\xff\x7f"),  # size
        (20, b"\xff\xff\xff\xff\xff\xff\xff\xff"),  # sizes in a field that is not there
        (28, b"\xff\xff"),  # length of the name
        (30, b"\xff\xff"),  # length of the extra field
        (32, b"\xff\xff"),  # length of the comment
        (42, b"\xff\xff\xff\x7f"),  # place
        (42, b"\x01\x00\x00\x00"),
        (46, b"x"),  # the name
        (46, b"\xff"),
        (0, b"PK\x01\x03"),
    ],
)
def test_a_directory_that_lies(forge: Any, tmp_path: Path, place: int, value: bytes) -> None:
    path = forge.zipped(tmp_path / "net.pt", _NOTHING)

    def lie(data: bytearray) -> None:
        at = _directory(data) + place
        data[at : at + len(value)] = value

    assert forge.refused(_changed(path, lie))


@pytest.mark.parametrize(
    ("place", "value"),
    [(8, b"\xff\xff\xff\xff"), (12, b"\xff\xff\xff\x7f"), (16, b"\xff\xff\xff\x7f"), (0, b"QK")],
)
def test_an_end_that_lies(forge: Any, tmp_path: Path, place: int, value: bytes) -> None:
    path = forge.zipped(tmp_path / "net.pt", _NOTHING)

    def lie(data: bytearray) -> None:
        at = data.rindex(b"PK\x05\x06") + place
        data[at : at + len(value)] = value

    assert forge.refused(_changed(path, lie))


def test_names_are_not_paths(forge: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../../evil/data.pkl", "../../evil/data/0", "/etc/passwd", "a\\..\\b"):
            archive.writestr(name, _NOTHING)
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert load_tensors(path).content == {}
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pt"]


def test_values_that_changed_after_they_were_written(forge: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"w": torch.ones(1000)}, path)

    def flip(data: bytearray) -> None:
        data[data.index(struct.pack("<4f", 1, 1, 1, 1)) + 400] ^= 1

    assert "a check sum does not match" in forge.refused(_changed(path, flip))


def test_values_at_odd_places_are_copied(forge: Any, tmp_path: Path) -> None:
    for name in ("n", "ne", "net", "nets"):
        path = tmp_path / "net.pt"
        with zipfile.ZipFile(path, "w") as archive:
            text = b"\x80\x02}X\x01\x00\x00\x00w" + forge.tensor() + b"s."
            archive.writestr(f"{name}/data.pkl", text)
            archive.writestr(f"{name}/data/0", forge.floats)
        tensor = load_tensors(path).content["w"]
        assert tensor.data_ptr() % 4 == 0
        assert torch.equal(tensor, torch.arange(16.0).reshape(4, 4))


def test_the_other_byte_order(forge: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", _NOTHING)
        archive.writestr("net/byteorder", b"big")
    assert "big-endian" in forge.refused(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a":1}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,15]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}',
        b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"QQQ","shape":[4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[4,20]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,16]}}',
        b"[" * 100_000,
        b'{"__metadata__":{"a":1},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"a\\u001b[2J":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}\xff',
    ],
)
def test_bad_headers_of_safetensors(forge: Any, tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + forge.floats[:16])
    assert forge.refused(path)


def test_headers_of_safetensors_that_are_too_long(forge: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"a": torch.ones(4)}, path)
    for size in (65 << 20, 1 << 40, (1 << 64) - 1):
        path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
        assert "not a complete safetensors" in forge.refused(path)
