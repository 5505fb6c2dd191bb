"""The inputs of ``fuzz_checkpoints``: files to start from, and what is changed in them."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import pickletools
import random
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors.torch import save

__all__ = ["changed", "seeds"]

NUMBERS = (0, 1, 2, 15, 16, 127, 255, 256, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
NAMES = [
    *(b"os\nsystem", b"builtins\neval", b"builtins\ngetattr", b"builtins\nset", b"builtins\nlist"),
    *(b"builtins\nbytearray", b"collections\nOrderedDict", b"collections\ndeque", b"torch\nSize"),
    *(b"collections\ndefaultdict", b"collections\nCounter", b"argparse\nNamespace"),
    *(b"yacs.config\nCfgNode", b"pathlib\nPosixPath", b"numpy\ndtype", b"numpy\nndarray"),
    *(b"numpy.core.multiarray\nscalar", b"numpy.core.multiarray\n_reconstruct"),
    *(b"numpy.core.numeric\n_frombuffer", b"torch\nFloatStorage", b"torch\nUntypedStorage"),
    *(b"torch\nBoolStorage", b"torch\nfloat16", b"torch\ndevice", b"torch.nn.parameter\nParameter"),
    *(b"torch._utils\n_rebuild_tensor", b"torch._utils\n_rebuild_tensor_v2", b"_codecs\nencode"),
    *(b"torch._utils\n_rebuild_tensor_v3", b"torch._utils\n_rebuild_parameter"),
    *(b"torch._tensor\n_rebuild_from_type_v2", b"copyreg\n_reconstructor", b"copyreg\n__newobj__"),
    *(b"torch._utils\n_rebuild_sparse_tensor", b"builtins\ncomplex", b"builtins\ntuple"),
]


# Seeds


def _record(module: str, name: str, base: type) -> type:
    """A class under the name that files of other libraries hold."""
    cls = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    setattr(sys.modules[module], name, cls)
    return cls


def seeds(fixtures: Path | None) -> list[bytes]:
    """Files to start from."""
    cfg = _record("yacs.config", "CfgNode", dict)
    easy = _record("easydict", "EasyDict", dict)
    config = cfg({"MODEL": cfg({"WIDTHS": [1, 2], "NAME": "x"})})
    config.__dict__["__immutable__"] = True
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    contents: list[object] = [
        net.state_dict(),
        {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "config": config},
        {"state_dict": net.state_dict(), "args": easy({"a": easy({"b": 1})}), "epoch": 3},
        {
            "model": OrderedDict((f"module.{k}", v) for k, v in net.state_dict().items()),
            "model_ema": net.state_dict(),
            "args": argparse.Namespace(lr=0.1, path=Path("/x"), names=("a", None, 1 << 70)),
            "best": np.float64(0.5),
            "history": [np.arange(3), np.zeros((2, 2), "f4"), {1, 2}, 3j, b"ab"],
        },
        {"net": net, "w": torch.arange(12.0).reshape(3, 4).t(), "h": torch.ones(3).half()},
        {"s": torch.eye(2).to_sparse(), "p": torch.nn.Parameter(torch.ones(2)), "d": torch.int8},
    ]
    made = []
    for content in contents:
        for options in (
            {"_use_new_zipfile_serialization": False},
            {},
            {"pickle_protocol": 4},
            {"_use_new_zipfile_serialization": False, "pickle_protocol": 5},
        ):
            stream = io.BytesIO()
            torch.save(content, stream, **options)
            made.append(stream.getvalue())
    made.append(save(net.state_dict(), metadata={"by": "fuzz"}))
    made.append(save({"a": torch.ones(3).bfloat16(), "b": torch.zeros(2, 0)}))
    if fixtures is not None:
        files = (path for path in sorted(fixtures.rglob("*")) if path.is_file())
        made += [path.read_bytes() for path in files if path.suffix in (".pth", ".tar", ".pt")]
    return made


# Changes


def some_bytes(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Change bytes wherever they lie, more often near the ends, where structure is."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        near = min(len(changed), rng.choice((64, 512, 4096, len(changed))))
        at = rng.randrange(near)
        at = at if rng.random() < 0.5 else len(changed) - 1 - at
        kind = rng.randrange(7)
        if kind == 0:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del changed[at : at + rng.choice((1, 2, 4, 100))]
        elif kind == 3:
            changed[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
        elif kind == 4:
            form = rng.choice(("<H", "<I", "<Q", ">I"))
            value = rng.choice(NUMBERS) % (1 << 8 * struct.calcsize(form))
            changed[at : at + struct.calcsize(form)] = struct.pack(form, value)
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            changed[at : at + rng.choice((4, 32, 400))] = other[start : start + 400]
        else:
            changed[at:at] = changed[at : at + rng.choice((8, 64, 1000))]
    if rng.random() < 0.1:
        del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)


def instructions(pickled: bytes) -> list[bytes]:
    """The pickle, cut into its instructions."""
    places = [at for _, _, at in pickletools.genops(pickled)]
    return [
        pickled[a:b] for a, b in zip(places, [*places[1:], len(pickled)], strict=True)
    ]  # fmt: skip


def some_instructions(pickled: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Change a pickle by whole instructions."""
    try:
        steps = instructions(pickled)
    except (ValueError, IndexError, KeyError):
        return some_bytes(pickled, rng, others)
    foreign = steps
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(steps))
        kind = rng.randrange(9)
        if kind == 0:
            del steps[at]
        elif kind == 1:
            steps.insert(at, rng.choice(foreign))
        elif kind == 2:
            other = rng.randrange(len(steps))
            steps[at], steps[other] = steps[other], steps[at]
        elif kind == 3:
            steps[at] = bytes(
                [rng.choice(b"NRbtsuea0122(\x85\x86\x87\x81\x92\x93Q}])\x8f\x90\x91")]
            )
        elif kind == 4:
            steps[at] = b"c" + rng.choice(NAMES) + b"\n"
        elif kind == 5:
            steps.insert(at, b"c" + rng.choice(NAMES) + b"\n" + rng.choice((b")R", b")\x81", b"")))
        elif kind == 6:
            steps[at] = rng.choice((b"h", b"q")) + bytes([rng.randrange(40)])
        elif kind == 7:
            steps[at] = pickle.dumps(rng.choice((*NUMBERS, -1, 1 << 62, 1.5, "x" * 50)), 2)[2:-1]
        else:
            end = at + rng.randrange(1, 30)
            steps[at:at] = steps[at:end] * rng.choice((1, 1, 50))
        if not steps:
            break
    return b"".join(steps)


def _archive(data: bytes, rng: random.Random, change: Callable[[bytes], bytes]) -> bytes:
    """Write an archive again with its pickle changed, and now and then with other changes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for info in old.infolist():
            text = old.read(info)
            name = info.filename
            if name.endswith("data.pkl"):
                text = change(text)
            chance = rng.random()
            if chance < 0.01:
                continue
            if chance < 0.02:
                name = rng.choice(("../../x", "/abs", name.upper(), "data.pkl", name + "\x00"))
            if chance < 0.03:
                text = text[: rng.randrange(len(text) + 1)] + rng.randbytes(rng.randrange(3))
            method = zipfile.ZIP_DEFLATED if 0.03 < chance < 0.035 else zipfile.ZIP_STORED
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new.writestr(name, text, method)
                if 0.035 < chance < 0.04:
                    new.writestr(name, text)
    return stream.getvalue()


def _old(data: bytes, rng: random.Random, change: Callable[[bytes], bytes]) -> bytes:
    """Change the fourth pickle of an old file, or another one."""
    stream, ends = io.BytesIO(data), [0]
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    which = rng.choice((3, 3, 3, 3, 4, 2))
    start, end = ends[which], ends[which + 1]
    return data[:start] + change(data[start:end]) + data[end:]


def _header(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    for _ in range(rng.choice((1, 1, 3))):
        entry = header[rng.choice([key for key in header if key != "__metadata__"])]
        field = rng.choice(("shape", "data_offsets", "dtype", "rename"))
        if field == "dtype":
            entry["dtype"] = rng.choice(("F16", "F64", "BOOL", "I8", "F8_E4M3", "F4", "X", 3))
        elif field == "rename":
            header["x" * rng.randrange(3) + chr(rng.randrange(200))] = entry
        elif entry.get(field):
            at = rng.randrange(len(entry[field]))
            entry[field][at] = rng.choice((*NUMBERS, -1, 1 << 63, 1.5, None))
    text = json.dumps(header).encode()
    length = len(text) if rng.random() < 0.9 else rng.choice(NUMBERS)
    return struct.pack("<Q", length) + text + data[8 + size :]


def changed(rng: random.Random, pool: list[bytes]) -> bytes:
    """One input."""
    data = rng.choice(pool)
    if rng.random() < 0.3:
        return some_bytes(data, rng, pool)

    def change(text: bytes) -> bytes:
        if rng.random() < 0.25:
            return some_bytes(text, rng, pool)
        return some_instructions(text, rng, pool)

    try:
        if data.startswith(b"PK"):
            data = _archive(data, rng, change)
            return some_bytes(data, rng, pool) if rng.random() < 0.05 else data
        if data.startswith(b"\x80"):
            return _old(data, rng, change)
        return _header(data, rng)
    except (ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return some_bytes(data, rng, pool)
