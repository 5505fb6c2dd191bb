from __future__ import annotations

import os
import pickle
import random
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from elastic_export.checkpoints.safe import load_tensors, state_dict_of
from elastic_export.errors import UserError


class _RunsCode:
    """Unpickled by Python itself, it would make the file it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def _weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(8, 4), "a.bias": torch.zeros(8), "n": torch.tensor(3)}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def _rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """Copy a zip archive entry by entry."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    content = {"model": OrderedDict(_weights()), "epoch": 3, "best": [0.5, (1, "x")], "none": None}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_tensors(path)
    assert loaded.format == ("torch-zip" if zipped else "torch-legacy")
    assert loaded.content["best"] == [0.5, (1, "x")]
    found = state_dict_of(loaded)
    assert _same(found.tensors, _weights())
    assert (found.name, found.collections) == ("model", ("model",))
    assert found.others == ("epoch", "best", "none")


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(_weights(), path, metadata={"by": "test"})
    loaded = load_tensors(path)
    assert (loaded.format, loaded.metadata) == ("safetensors", {"by": "test"})
    found = state_dict_of(loaded)
    assert found.tensors.keys() == _weights().keys()
    assert torch.equal(found.tensors["a.weight"], _weights()["a.weight"])
    path.rename(tmp_path / "net.bin")
    assert load_tensors(tmp_path / "net.bin").format == "safetensors"


def test_parameters_and_shared_weights(tmp_path: Path) -> None:
    net = nn.Linear(4, 4)
    torch.save({"state_dict": {"a": net.weight, "b": net.weight}}, tmp_path / "net.pt")
    tensors = state_dict_of(load_tensors(tmp_path / "net.pt")).tensors
    assert not tensors["a"].requires_grad
    assert torch.equal(tensors["a"], tensors["b"])


def _save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_which_collection_is_taken(tmp_path: Path) -> None:
    one, other = _weights(), {k: v + 1 for k, v in _weights().items()}
    path = _save(tmp_path / "net.pt", {"model": one, "model_ema": other})
    loaded = load_tensors(path)
    assert _same(state_dict_of(loaded).tensors, other)
    assert state_dict_of(loaded).collections == ("model", "model_ema")
    assert _same(state_dict_of(loaded, prefer=("model",)).tensors, one)
    flat = load_tensors(_save(tmp_path / "flat.pt", {**one, "epoch": 1}))
    assert _same(state_dict_of(flat).tensors, one)
    assert state_dict_of(flat).others == ("epoch",)
    odd = load_tensors(_save(tmp_path / "odd.pt", {"network": one, "epoch": 1}))
    assert state_dict_of(odd).name == "network"


def test_the_prefix_of_data_parallel_goes(tmp_path: Path) -> None:
    path = _save(tmp_path / "net.pt", {f"module.{k}": v for k, v in _weights().items()})
    assert _same(state_dict_of(load_tensors(path)).tensors, _weights())
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    found = state_dict_of(load_tensors(_save(tmp_path / "mixed.pt", mixed)))
    assert list(found.tensors) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        (torch.zeros(2), "holds a Tensor"),
        ({"epoch": 3, "names": ["a"]}, "no dictionary of named tensors"),
        ({"x": {"a": torch.zeros(1)}, "y": {"a": torch.zeros(1)}}, "several networks: x, y"),
    ],
)
def test_files_without_one_network(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        state_dict_of(load_tensors(_save(tmp_path / "net.pt", content)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_broken_weights_are_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    weights = {**_weights(), "b.weight": torch.tensor([1.0, value, 2.0], dtype=dtype)}
    with pytest.raises(UserError, match=r'"b\.weight" .* holds NaN or infinite'):
        state_dict_of(load_tensors(_save(tmp_path / "net.pt", {"model": weights})))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_named_and_never_runs(tmp_path: Path, zipped: bool) -> None:
    touched, path = tmp_path / "touched", tmp_path / "evil.pth"
    content = {"model": _weights(), "extra": _RunsCode(touched)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"could run code when loaded: posix\.system"):
        load_tensors(path)
    assert not touched.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_code_in_a_bare_pickle_is_named_and_never_runs(tmp_path: Path, protocol: int) -> None:
    touched, path = tmp_path / "touched", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(_RunsCode(touched), protocol))
    with pytest.raises(UserError, match=r"posix\.system"):
        load_tensors(path)
    assert not touched.exists()


def test_a_program_is_not_a_checkpoint(tmp_path: Path) -> None:
    source = _save(tmp_path / "net.pt", _weights())
    path = _rewritten(source, tmp_path / "program.pt", lambda _, data: data)
    with zipfile.ZipFile(path, "a") as archive:  # what TorchScript writes beside data.pkl
        archive.writestr("net/constants.pkl", b"\x80\x02).")
    with pytest.raises(UserError, match="TorchScript"):
        load_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95, 0.999])
def test_truncated_torch_files(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "net.pth"
    torch.save({"model": _weights()}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="cut off"):
        load_tensors(path)


@pytest.mark.parametrize("size", [4, 20, -1])
def test_truncated_safetensors(tmp_path: Path, size: int) -> None:
    path = tmp_path / "net.safetensors"
    save_file(_weights(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="not a complete safetensors"):
        load_tensors(path)


def test_a_safetensors_header_that_claims_too_much(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(UserError, match="not a complete safetensors"):
        load_tensors(path)
    path.write_bytes(struct.pack("<Q", 1 << 62) + header)
    with pytest.raises(UserError, match="not a complete safetensors"):
        load_tensors(path)


def test_storage_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    source = _save(tmp_path / "net.pt", {"w": torch.zeros(16)})

    def enlarge(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        assert b"K\x10" in data
        return data.replace(b"K\x10", b"J" + struct.pack("<i", 1 << 30))

    path = _rewritten(source, tmp_path / "claims.pt", enlarge)
    with pytest.raises(UserError, match="claims tensors it does not hold"):
        load_tensors(path)


def test_views_larger_than_the_file(tmp_path: Path) -> None:
    path = _save(tmp_path / "net.pt", {"w": torch.zeros(1).expand(1 << 40)})
    with pytest.raises(UserError, match=r'"w" .* claims 4398046511104 bytes'):
        load_tensors(path)
    one = torch.zeros(1000)
    many = {f"w{i}": one for i in range(200)}
    with pytest.raises(UserError, match="claims 4000 bytes"):
        load_tensors(_save(tmp_path / "many.pt", many))


def test_a_compressed_bomb(tmp_path: Path) -> None:
    source, path = _save(tmp_path / "net.pt", {"w": torch.zeros(16)}), tmp_path / "bomb.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(1 << 26) if name.endswith("data/0") else old.read(name))
    with pytest.raises(UserError, match="claims more data than its size"):
        load_tensors(path)


def test_a_pickle_that_asks_for_memory(tmp_path: Path) -> None:
    """``bytearray(2**40)`` costs thirty bytes in a pickle."""
    source = _save(tmp_path / "net.pt", {"w": torch.zeros(16)})
    bomb = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R."
    path = _rewritten(
        source, tmp_path / "bomb.pt", lambda name, d: bomb if name.endswith("data.pkl") else d
    )
    with pytest.raises(UserError, match="cut off or damaged"):
        load_tensors(path)


@pytest.mark.parametrize(
    "content",
    [
        random.Random(0).randbytes(4000),
        b"hello\nworld\n" * 20,
        b"<html></html>",
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        pickle.dumps({"a": 1}),
    ],
    ids=["random", "text", "html", "hdf5", "pickle"],
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint"):
        load_tensors(tmp_path / "net.pth")


def test_another_zip_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("../../etc/passwd", "x")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_tensors(tmp_path / "net.pth")


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        load_tensors(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        load_tensors(tmp_path)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UserError, match="is empty"):
        load_tensors(tmp_path / "empty.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_give_a_clear_error_or_a_result_in_bounded_time(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "net.bin"
    if kind == "safetensors":
        save_file(_weights(), path)
    else:
        content = {"model": _weights(), "epoch": 1}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    original, rng = path.read_bytes(), random.Random(5)
    told: list[tuple[str, str]] = []
    for _ in range(400):
        damaged = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        started = time.perf_counter()
        try:
            state_dict_of(load_tensors(path))
        except UserError as error:
            told.append((error.what, error.fix))
        assert time.perf_counter() - started < 5
    assert told
    assert all(what.endswith(".") and fix.endswith(".") for what, fix in told)


def test_loading_maps_the_file_and_does_not_copy_it(tmp_path: Path) -> None:
    path = _save(tmp_path / "net.pt", {"w": torch.zeros(1000, 1000)})
    tensor = load_tensors(path).content["w"]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert str(path) in maps.read_text()
    assert tensor.sum() == 0
