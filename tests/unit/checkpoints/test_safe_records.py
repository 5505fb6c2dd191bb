from __future__ import annotations

import argparse
import collections
import datetime
import enum
import io
import pathlib
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from elastic_export.checkpoints.pickles.inert import Opaque
from elastic_export.checkpoints.safe import load_tensors, state_dict_of
from elastic_export.errors import UserError

KINDS = ["zip", "legacy"]


class CfgNode(dict):
    """Shaped as yacs has it: a dict with attributes of its own."""

    def __init__(self, items: Any = None) -> None:
        super().__init__(items or {})
        self.__dict__["__immutable__"] = True
        self.__dict__["__deprecated_keys__"] = {"OLD"}

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class EasyDict(dict):
    """Shaped as easydict has it: items are attributes too."""

    def __init__(self, items: Any = None) -> None:
        super().__init__(items or {})
        for key, value in (items or {}).items():
            setattr(self, key, value)


class Colour(enum.Enum):
    RED = 1


class Meter:
    def __init__(self) -> None:
        self.values = [1.0, 2.0]


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    """Make the classes known under the names that real files have; gone before a file is read."""
    for cls, module in (
        (CfgNode, "yacs.config"),
        (EasyDict, "easydict"),
        (Colour, "lib.kinds"),
        (Meter, "lib.meters"),
    ):
        cls.__module__ = module
        for name in (module.partition(".")[0], module):
            sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[module], cls.__name__, cls)
    yield
    for module in ("yacs", "yacs.config", "easydict", "lib", "lib.kinds", "lib.meters"):
        sys.modules.pop(module, None)


def _round(tmp_path: Path, kind: str, content: object, protocol: int = 2) -> Any:
    path = tmp_path / "net.pth"
    zipped = kind == "zip"
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return load_tensors(path).content


RECORDS: list[tuple[object, object]] = [
    (CfgNode({"A": CfgNode({"B": [1, 2]}), "C": "x"}), {"A": {"B": [1, 2]}, "C": "x"}),
    (EasyDict({"a": EasyDict({"b": 1})}), {"a": {"b": 1}}),
    (argparse.Namespace(a=1, b=argparse.Namespace(c=None)), {"a": 1, "b": {"c": None}}),
    (types.SimpleNamespace(a=(1, 2)), {"a": (1, 2)}),
    (pathlib.PurePosixPath("/data/images"), "/data/images"),
    (pathlib.PureWindowsPath("C:\\data\\x"), "C:\\data\\x"),
    (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (collections.defaultdict(list, {"a": [1]}), {"a": [1]}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (collections.deque([1, 2], maxlen=3), [1, 2]),
    ({1, 2, "x"}, {1, 2, "x"}),
    (frozenset((1, 2)), frozenset((1, 2))),
    ({(1, (2, 3)): "a", 5: "b", None: 1, 1.5: 2}, {(1, (2, 3)): "a", 5: "b", None: 1, 1.5: 2}),
    (b"ab\xff", b"ab\xff"),
    (bytearray(b"ab\xff"), b"ab\xff"),
    (3 + 4j, 3 + 4j),
    ([1, -1, 255, 70000, -(1 << 40), 1 << 100, True, 1.5, "é", ""],
     [1, -1, 255, 70000, -(1 << 40), 1 << 100, True, 1.5, "é", ""]),
    (np.float64(0.5), 0.5),
    (np.float32(0.5), 0.5),
    (np.int64(7), 7),
    (np.bool_(True), True),
    (np.array(3.0).astype(">f4")[()], 3.0),
    (torch.device("cuda", 1), "cuda:1"),
    (torch.device("cpu"), "cpu"),
    (torch.Size([1, 2]), (1, 2)),
    (torch.float16, torch.float16),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_records_become_plain_values(tmp_path: Path, kind: str, protocol: int) -> None:
    given = {"values": [value for value, _ in RECORDS], "w": torch.ones(2)}
    found = _round(tmp_path, kind, given, protocol)["values"]
    for value, (_, wanted) in zip(found, RECORDS, strict=True):
        assert value == wanted
        assert type(value) is type(wanted)


def test_protocols_of_python_2(forge: Any, tmp_path: Path) -> None:
    content = {"a": argparse.Namespace(b=[1, 2.5, None, True, 1 << 70]), "c": ("x\n'y", {})}
    for protocol in (0, 1):
        path = forge.zipped(tmp_path / "net.pt", pickle.dumps(content, protocol))
        assert load_tensors(path).content == {"a": {"b": content["a"].b}, "c": content["c"]}
    old = b"(dp0\nS'it\\'s'\np1\nI5\nsS'long'\nL5L\nsVu\\u00e9\nF0.5\ns."
    path = forge.zipped(tmp_path / "net.pt", old)
    assert load_tensors(path).content == {"it's": 5, "long": 5, "ué": 0.5}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays(tmp_path: Path, kind: str, protocol: int) -> None:
    arrays = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.array([True, False]),
        np.arange(3, dtype=">i4"),
        np.zeros((0, 4), np.float32),
        np.array(2.5),
    ]
    found = _round(tmp_path, kind, {"x": arrays, "again": arrays[0]}, protocol)
    for array, wanted in zip(found["x"], arrays, strict=True):
        assert np.array_equal(array, wanted)
        assert array.dtype == wanted.dtype
    assert np.array_equal(found["again"], arrays[0])
    odd = _round(
        tmp_path, kind, {"o": np.array([None, 1]), "s": np.array(["ab"]), "e": 1}, protocol
    )
    assert isinstance(odd["o"], Opaque)
    assert isinstance(odd["s"], Opaque)


def test_arrays_that_claim_too_much(forge: Any, tmp_path: Path) -> None:
    text = pickle.dumps(np.zeros(4), 2)
    assert b"K\x04\x85" in text
    for shape in (b"J\x00\x00\x00\x40\x85", b"K\x05\x85", b"J\xff\xff\xff\xff\x85", b"K\x04", b"N"):
        path = forge.zipped(tmp_path / "net.pt", text.replace(b"K\x04\x85", shape))
        assert "cut off or damaged" in forge.refused(path)


TENSORS = [
    *(torch.ones(3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)),
    torch.ones(3, dtype=torch.uint16),
    torch.ones(3).to(torch.float8_e4m3fn),
    torch.arange(6).reshape(2, 3).t(),
    torch.arange(24.0).reshape(1, 4, 2, 3).to(memory_format=torch.channels_last),
    torch.tensor(3),
    torch.zeros(0, 3),
    torch.ones(2, dtype=torch.complex64),
    torch.tensor([True, False]),
    nn.Parameter(torch.ones(2)),
]


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_those_that_were_saved(tmp_path: Path, kind: str) -> None:
    whole = torch.arange(10.0)
    attributed = torch.ones(2)
    attributed.note = "kept by nobody"  # type: ignore[attr-defined]
    parts = [*TENSORS, whole[2:5], whole[::2], attributed]
    for tensor, wanted in zip(_round(tmp_path, kind, parts), parts, strict=True):
        assert type(tensor) is torch.Tensor
        assert tensor.dtype == wanted.dtype
        assert tensor.stride() == wanted.stride()
        wide = torch.complex128 if wanted.is_complex() else torch.float64
        assert torch.equal(tensor.to(wide), wanted.to(wide))
        assert not tensor.requires_grad


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_other_kinds_are_named(tmp_path: Path, kind: str) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for name, tensor in (
        ("_rebuild_sparse_tensor", torch.eye(3).to_sparse()),
        ("conjugate", torch.ones(3, dtype=torch.complex64).conj()),
        ("meta", torch.ones(3, device="meta")),
        ("_rebuild_qtensor", quantized),
    ):
        path = tmp_path / "net.pth"
        content = {"model": {"good": torch.ones(2), "bad": tensor}}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
        with pytest.raises(UserError, match=f'"bad" of .* is a tensor .*{name}'):
            state_dict_of(load_tensors(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_network_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net.pth"
    for content in (nn.Linear(2, 2), {"epoch": 1, "model": nn.Sequential(nn.Linear(2, 2))}):
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
        with pytest.raises(UserError, match=r"whole network of class torch\.nn\.") as told:
            state_dict_of(load_tensors(path))
        assert "torch.save(model.state_dict(), path)" in told.value.fix


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_needed_stays_closed(tmp_path: Path, kind: str) -> None:
    net = nn.Linear(2, 2)
    content = {
        "model": net.state_dict(),
        "optimizer": torch.optim.AdamW(net.parameters()),
        "when": datetime.datetime(2024, 5, 1),
        "kind": Colour.RED,
        "meter": Meter(),
        "loss": nn.CrossEntropyLoss,
        "seed": np.random.default_rng(0),
    }
    found = _round(tmp_path, kind, content)
    assert state_dict_of(load_tensors(tmp_path / "net.pth")).name == "model"
    meter = found["meter"]
    assert isinstance(meter, Opaque)
    assert repr(meter) == "<not opened: lib.meters.Meter>"
    assert bool(meter)
    for use in (
        lambda: meter.values,
        lambda: meter["values"],
        lambda: list(meter),
        lambda: len(meter),
        lambda: float(meter),
        lambda: meter(),
        lambda: "x" in meter,
    ):
        with pytest.raises(UserError, match=r"object of class lib\.meters\.Meter, which is not"):
            use()
    assert {type(found[key]) for key in ("optimizer", "when", "kind", "loss", "seed")} == {Opaque}


def test_reading_runs_nothing_of_the_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the real classes are installed."""

    def burn(*_: object, **__: object) -> None:
        raise AssertionError("code of the file's classes ran")

    stream = io.BytesIO()
    torch.save({"a": CfgNode({"b": 1}), "m": Meter(), "n": argparse.Namespace(x=1)}, stream)
    (tmp_path / "net.pth").write_bytes(stream.getvalue())
    for cls in (CfgNode, Meter):
        for name in ("__init__", "__new__", "__setstate__", "__setitem__", "__getattribute__"):
            monkeypatch.setattr(cls, name, burn, raising=False)
    content = load_tensors(tmp_path / "net.pth").content
    assert content["a"] == {"b": 1}
    assert content["n"] == {"x": 1}
