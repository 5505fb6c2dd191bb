from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from elastic_export.checkpoints.pickles.inert import Opaque
from elastic_export.checkpoints.safe import load_tensors
from elastic_export.errors import UserError

_FLOATS = struct.pack("<16f", *range(16))
KINDS = ["zip", "legacy"]


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _call(module: str, name: str, *args: bytes) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(args) + b"tR"


def _programs(touched: str) -> dict[str, bytes]:
    """Pickles that would make a file if any part of them ran."""
    shell = _text(f"touch {touched}")
    code = _text(f"open({touched!r}, 'w')")
    getter = _call("builtins", "getattr", b"cos\n", b"system\n", _text("__call__"))
    imported = _call("builtins", "__import__", _text("os"))
    nested = pickle.dumps(pickle.dumps({"a": 1}))[2:-1]
    return {
        "system": _call("os", "system", shell),
        "posix": _call("posix", "system", shell),
        "popen": _call("subprocess", "Popen", b"(" + shell + b"l"),
        "eval": _call("builtins", "eval", code),
        "exec of Python 2": _call("__builtin__", "execfile", code),
        "import": b"(" + imported + b"i" + b"builtins\ngetattr\n",
        "getattr": getter + b"(" + shell + b"tR",
        "stack": _text("posix") + b"q\x00" + _text("system") + b"q\x01" + b"00h\x00h\x01\x93("
        + shell + b"tR",
        "memo": _text("system") + b"q\x00" + _text("posix") + b"h\x00\x93(" + shell + b"tR"
        + _text("x"),
        "dotted": _text("torch") + _text("os.system") + b"\x93(" + shell + b"tR",
        "dotted serialization": _text("torch.serialization") + _text("os.system") + b"\x93("
        + shell + b"tR",
        "inst": b"(" + shell + b"iposix\nsystem\n",
        "object": b"(cposix\nsystem\n" + shell + b"o",
        "new": b"cposix\nsystem\n(" + shell + b"t\x81",
        "new with keywords": b"cposix\nsystem\n(" + shell + b"t}\x92",
        "newobj": _call("copyreg", "__newobj__", b"cposix\nsystem\n" + shell),
        "reconstructor": _call("copy_reg", "_reconstructor", b"cposix\nsystem\n" + shell + b"N"),
        "pickle": _call("_pickle", "loads", nested),
        "torch.load": _call("torch", "load", shell),
        "hub": _call("torch.hub", "load", shell),
        "partial": _call("functools", "partial", b"cposix\nsystem\n" + shell) + b")R",
        "map": _call("builtins", "list", _call("builtins", "map", b"cos\nsystem\n" + b"(" + shell
        + b"l")),
        "defaultdict": _call("collections", "defaultdict", b"cos\nsystem\n"),
        "hook": b"q\x05" + _call("torch._tensor", "_rebuild_from_type_v2",
            b"cposix\nsystem\n", b"ctorch\nTensor\n", b"(" + shell + b"t", b"}"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", _programs(""))
def test_programs_are_named_and_do_not_run(
    forge: Any, tmp_path: Path, kind: str, name: str
) -> None:
    touched = tmp_path / "touched"
    program = _programs(str(touched))[name]
    path = forge.write(kind, tmp_path / "evil.pt", b"\x80\x04}(" + _text("x") + program + b"u.")
    what = forge.read(path)[1]
    assert what is not None
    assert not touched.exists()
    if name not in ("dotted", "dotted serialization"):
        assert "could run code when loaded" in what.what or "cut off" in what.what


def test_a_chain_of_harmless_names_stays_a_name(forge: Any, tmp_path: Path) -> None:
    """What is not known to harm is not made either."""
    chain = _call("mylib", "load", _text("x")) + b"}" + _text("__class__") + b"Nsb"
    chain = b"}(" + _text("a") + chain + _text("b") + _call("builtins", "getattr", b"N", b"N")
    loaded = load_tensors(forge.zipped(tmp_path / "odd.pt", b"\x80\x02" + chain + b"u."))
    assert isinstance(loaded.content["a"], Opaque)
    assert loaded.content["a"].class_name == "mylib.load"
    assert isinstance(loaded.content["b"], Opaque)


def test_state_is_content_and_never_attributes(forge: Any, tmp_path: Path) -> None:
    record = b"cargparse\nNamespace\n)\x81}(" + _text("__class__") + b"cos\nPathLike\n"
    assert "run code" in forge.refused(
        forge.zipped(tmp_path / "a.pt", b"\x80\x02" + record + b"ub.")
    )
    record = b"cargparse\nNamespace\n)\x81}(" + _text("__setattr__") + _text("y") + b"ub."
    loaded = load_tensors(forge.zipped(tmp_path / "b.pt", b"\x80\x02" + record))
    assert loaded.content == {"__setattr__": "y"}
    assert type(loaded.content) is dict
    for bad in (b"]N", b"}K\x01K\x02s", b"K\x05", b"(NK\x01t"):
        text = b"\x80\x02cargparse\nNamespace\n)\x81" + bad + b"b."
        assert "cut off or damaged" in forge.refused(forge.zipped(tmp_path / "c.pt", text))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b".",
        b"N",
        b"(.",
        b"t.",
        b"R.",
        b"NNR.",
        b"NNb.",
        b"]Nb.",
        b"}Na.",
        b"]N(Nu.",
        b"})Ns.",
        b"}]Ns.",
        b"}}Ns.",
        b"\x8f(]\x90.",
        b"(]\x91.",
        b"h\x07.",
        b"\x93.",
        b"NN\x93.",
        b"\x82\x01.",
        b"\x84\x01\x00\x00\x00.",
        b"\x97.",
        b"\x98.",
        b"\xff.",
        b"\x80\x09N.",
        b"NQ.",
        b"Pname\n.",
        b"I" + b"9" * 400 + b"\n.",
        b"I1x\n.",
        b"Fx\n.",
        b"Sx\n.",
        b"V\xff\\u\n.",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"cno newline",
        b"c\xff\n\xff\nN.",
        b"p-1\n.",
        b"N0.",
        b"N00.",
        b"(1.",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_broken_pickles(forge: Any, tmp_path: Path, kind: str, text: bytes) -> None:
    assert forge.refused(forge.write(kind, tmp_path / "net.pt", b"\x80\x02" + text))


@pytest.mark.parametrize(
    "text",
    [
        b"\x8e" + struct.pack("<Q", 1 << 60),
        b"\x96" + struct.pack("<Q", (1 << 64) - 1),
        b"\x8d" + struct.pack("<Q", 1 << 40),
        b"B" + struct.pack("<I", (1 << 32) - 1),
        b"T" + struct.pack("<I", (1 << 31) + 5),
        b"X" + struct.pack("<I", (1 << 32) - 1),
        b"\x95" + struct.pack("<Q", 1 << 62) + b"N.",
        b"\x8b" + struct.pack("<i", -5) + b"N.",
        b"\x8b" + struct.pack("<i", 1 << 30) + b"N.",
        b"Nr" + struct.pack("<I", (1 << 32) - 1) + b".",
        b"Np999999999999999999\n.",
        b"c__builtin__\nbytearray\n(\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"tR.",
        b"c__builtin__\nbytes\n(\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"tR.",
        b"c__builtin__\nlist\n(c__builtin__\nrange\n(J\xff\xff\xff\x7ftRtR.",
        b"c__builtin__\npow\n(K\x09J\xff\xff\xff\x7ftR.",
        b"cnumpy\nzeros\n(J\xff\xff\xff\x7ftR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01btR.",
        b"ccollections\ndeque\n((J\xff\xff\xff\x7ftJ\xff\xff\xff\x7ftR.",
        b"ctorch\nSize\n(J\xff\xff\xff\x7ftR.",
        b"ctorch\nFloatTensor\n(J\xff\xff\xff\x7ftR.",
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(NtR.",
        b"ctorch\nempty\n((J\xff\xff\xff\x7fJ\xff\xff\xff\x7fttR.",
    ],
)
def test_claims_of_memory(forge: Any, tmp_path: Path, text: bytes) -> None:
    for kind in KINDS:
        assert forge.refused(forge.write(kind, tmp_path / "net.pt", b"\x80\x02" + text))


@pytest.mark.parametrize(
    "text",
    [
        b"]" * 50_000 + b"a" * 49_999 + b".",
        b")" + b"\x85" * 100_000 + b".",
        b"})" + b"\x85" * 50_000 + b"Ns.",
        b"]q\x00h\x00a.",
        b"}q\x00X\x01\x00\x00\x00ah\x00s.",
        b"]q\x00(h\x00\x85K\x01ta.",
        b")" + b"2\x86" * 64 + b".",
        b"})" + b"2\x86" * 64 + b"Ns.",
        b"\x8f()" + b"2\x86" * 64 + b"\x90.",
        b"](" + b"N" * 1000 + b"e" + b"2\x862\x86" * 8 + b".",
    ],
)
def test_deep_and_shared_containers(forge: Any, tmp_path: Path, text: bytes) -> None:
    for kind in KINDS:
        assert forge.refused(forge.write(kind, tmp_path / "net.pt", b"\x80\x02" + text))


def test_copies_are_counted(forge: Any, tmp_path: Path) -> None:
    """One list, copied into ten thousand sets by two bytes each."""
    items = b"](" + b"".join(b"M" + struct.pack("<H", i) for i in range(20_000)) + b"e\x85q\x00"
    maker = b"c__builtin__\nset\nq\x01"
    text = b"\x80\x02" + items + maker + b"h\x01h\x00R0" * 10_000 + b"."
    assert "more objects" in forge.refused(forge.zipped(tmp_path / "net.pt", text))


def test_keys_whose_hashes_collide(forge: Any, tmp_path: Path) -> None:
    prime = (1 << 61) - 1
    many = b"".join(pickle.dumps(i * prime, 2)[2:-1] + b"N" for i in range(20_000))
    assert "odd keys" in forge.refused(
        forge.zipped(tmp_path / "net.pt", b"\x80\x02}(" + many + b"u.")
    )
    pairs = b"".join(
        b"(" + b"".join(b"J" + struct.pack("<i", -1 - (i >> b & 1)) for b in range(16)) + b"tN"
        for i in range(1 << 14)
    )
    assert "odd keys" in forge.refused(
        forge.zipped(tmp_path / "net.pt", b"\x80\x02}(" + pairs + b"u.")
    )


@pytest.mark.parametrize(
    "name",
    ["\x1b[2Jgone", "a\nError: all is well", "a\rb", "\u202edesrever", "\x00", "a\u2028b"],
)
def test_names_that_would_play_with_the_terminal(forge: Any, tmp_path: Path, name: str) -> None:
    for kind in KINDS:
        path = forge.write(kind, tmp_path / "net.pt", b"\x80\x02}(" + _text(name) + b"Nu.")
        assert "not fit to print" in forge.refused(path)
        text = b"\x80\x02" + _text("mod" + name) + _text("cls") + b"\x93)R."
        assert forge.refused(forge.write(kind, tmp_path / "net.pt", text))
    torch.save({name: torch.zeros(2)}, tmp_path / "net.pt")
    assert "not fit to print" in forge.refused(tmp_path / "net.pt")


def test_names_without_end(forge: Any, tmp_path: Path) -> None:
    torch.save({"a" * 100_000: torch.zeros(2)}, tmp_path / "net.pt")
    assert "not fit to print" in forge.refused(tmp_path / "net.pt")


BAD_VIEWS: list[dict[str, object]] = [
    {"numel": 17},
    {"numel": -1},
    {"numel": 1 << 40},
    {"numel": 1 << 70},
    {"numel": "16"},
    {"numel": 2.0},
    {"key": "7"},
    {"key": "../../data.pkl"},
    {"key": "/etc/passwd"},
    {"offset": 1},
    {"offset": -1},
    {"offset": 1 << 62},
    {"offset": None},
    {"offset": 1.0},
    {"shape": (4, 5)},
    {"shape": (1 << 40, 1 << 40)},
    {"shape": (-4, -4)},
    {"shape": (4,)},
    {"shape": 4},
    {"shape": "44"},
    {"shape": (4.0, 4)},
    {"shape": (True, 4)},
    {"stride": (-4, 1)},
    {"stride": (5, 1)},
    {"stride": (1 << 62, 1)},
    {"stride": (4, 1, 1)},
    {"stride": None},
    {"shape": (1,) * 200, "stride": (1,) * 200},
    {"shape": (0, 1 << 62), "stride": (1, 1)},
]


@pytest.mark.parametrize("change", BAD_VIEWS, ids=str)
def test_tensors_outside_their_storage(
    forge: Any, tmp_path: Path, change: dict[str, object]
) -> None:
    for maker in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        text = b"\x80\x02}(" + _text("w") + forge.tensor(**change, maker=maker) + b"u."  # type: ignore[arg-type]
        assert "cut off or damaged" in forge.refused(forge.zipped(tmp_path / "net.pt", text))
        text = text.replace(b"tQ", b"NtQ")  # which has one value more
        values = struct.pack("<q", 16) + _FLOATS
        assert forge.refused(forge.legacy(tmp_path / "old.pt", text, b"\x80\x02]U\x010a.", values))


def test_the_files_of_these_tests_are_right_without_a_change(forge: Any, tmp_path: Path) -> None:
    text = b"\x80\x02}(" + _text("w") + forge.tensor() + b"u."
    values = struct.pack("<q", 16) + _FLOATS
    old = text.replace(b"tQ", b"NtQ")
    for path in (
        forge.zipped(tmp_path / "net.pt", text),
        forge.legacy(tmp_path / "old.pt", old, b"\x80\x02]U\x010a.", values),
    ):
        loaded, told = forge.read(path)
        assert told is None
        assert loaded is not None
        assert torch.equal(loaded.content["w"], torch.arange(16.0).reshape(4, 4))


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (b"\x80\x02].", b""),
        (b"\x80\x02N.", b""),
        (b"\x80\x02]U\x011a.", struct.pack("<q", 16) + _FLOATS),
        (b"\x80\x02](U\x010U\x010e.", struct.pack("<q", 16) + _FLOATS * 3),
        (b"\x80\x02]]a.", struct.pack("<q", 16) + _FLOATS),
        (b"\x80\x02]U\x010a.", struct.pack("<q", 1 << 60) + _FLOATS),
        (b"\x80\x02]U\x010a.", struct.pack("<q", -1) + _FLOATS),
        (b"\x80\x02]U\x010a.", struct.pack("<q", 16) + _FLOATS[:-1]),
        (b"\x80\x02]U\x010a.", b"\x10\x00"),
        (b"\x80\x02]U\x010a", b""),
        (b"", b""),
    ],
)
def test_values_behind_an_old_file_that_do_not_fit(
    forge: Any, tmp_path: Path, keys: bytes, values: bytes
) -> None:
    text = b"\x80\x02}(" + _text("w") + forge.tensor(view=b"N") + b"u."
    assert forge.refused(forge.legacy(tmp_path / "old.pt", text, keys, values))


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_truncation_everywhere(forge: Any, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net.pt"
    content = {"model": {"a": torch.ones(20), "b": torch.ones(3, 3)}, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    for size in range(0, len(data), 5 if kind == "zip" else 1):
        path.write_bytes(data[:size])
        with pytest.raises(UserError):
            load_tensors(path)


def test_nothing_is_made_next_to_the_file(forge: Any, tmp_path: Path) -> None:
    before = set(os.listdir())
    forge.zipped(tmp_path / "net.pt", b"\x80\x02N.", {"../../x": b"1", "/tmp/x": b"2"})
    assert forge.refused(tmp_path / "net.pt")
    assert os.listdir(tmp_path) == ["net.pt"]
    assert set(os.listdir()) == before
