"""Bundles: complete, deterministic, replaced whole, and never believed unread."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from elastic_export.config.result import Accuracy
from elastic_export.config.transform import Transform
from elastic_export.engine import bundle as bundle_module
from elastic_export.engine.bundle import load_bundle, sample_file, write_bundle
from elastic_export.engine.bundle_manifest import MANIFEST, Manifest, render
from elastic_export.engine.trtexec import trtexec_script
from elastic_export.errors import CheckFailed, UserError

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((64, 10)).astype(np.float32)
IMAGES = RNG.standard_normal((3, 1, 8, 8)).astype(np.float32)
LOGITS = IMAGES.reshape(3, 64) @ WEIGHT


def tiny_onnx() -> bytes:
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    opset = [helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def fields(**changes):
    return {
        "name": "d1",
        "target": "host-cpu",
        "runtime": {"name": "onnxruntime", "version": "1.22.0"},
        "models": {"fp32": "model_fp32.onnx"},
        "descendant": {"family": "vit", "spec": {"depth": 2, "heads": (2, 2)}, "spec_id": "ab12"},
        "inputs": [{"name": "input", "dtype": "float32", "shape": [1, 1, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 10]}],
        "transform": Transform(size=8, resize=None, channels=1, mean=(0.3,), std=(0.37,)),
        "sample": {"file": "sample.safetensors", "images": 3, "tolerance": {"fp32": 1e-5}},
        "accuracy": {
            "fp32": Accuracy(top1=97.2, images=360, split="test", runner="x", how="deployed")
        },
        "checks": {"opset": 20, "parity": 3.1e-7},
        "versions": {"elastic-export": "0.1.0", "onnx": "1.20.0"},
        "notes": ("Nothing special.",),
    } | changes


def contents(**changes):
    return {
        "model_fp32.onnx": tiny_onnx(),
        "sample.safetensors": sample_file(IMAGES, {"fp32": LOGITS}),
    } | changes


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "out" / "host-cpu"
    write_bundle(target, manifest_fields=fields(), files=contents())
    return target


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def jetson(version="10.3", typed=True):
    script = trtexec_script("model_int8.onnx", strongly_typed=typed, sparse=True, version=version)
    return (
        fields(
            target="orin-nano-8gb@jp6.2:15W",
            runtime={"name": "tensorrt", "version": version},
            models={"int8": "model_int8.onnx"},
            sample=None,
            accuracy={},
        ),
        {"model_int8.onnx": tiny_onnx(), "build_engine.sh": script.encode()},
    )


def test_round_trip(folder):
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    assert bundle.model("fp32") == folder / "model_fp32.onnx"
    assert manifest.descendant["spec"] == {"depth": 2, "heads": [2, 2]}
    assert manifest.transform == Transform(
        size=8, resize=None, channels=1, mean=(0.3,), std=(0.37,)
    )
    assert set(manifest.files) == {"README.md", "model_fp32.onnx", "sample.safetensors"}
    assert manifest.files["model_fp32.onnx"].bytes == len(tiny_onnx())
    with pytest.raises(UserError, match='no "int8" model'):
        bundle.model("int8")
    assert list(folder.parent.iterdir()) == [folder], "drafts were left behind"


def test_written_bundle_equals_the_loaded_one(tmp_path):
    written = write_bundle(tmp_path / "b", manifest_fields=fields(), files=contents())
    assert load_bundle(tmp_path / "b") == written


def test_equal_input_gives_equal_bytes(tmp_path, folder):
    source = tmp_path / "elsewhere.onnx"
    source.write_bytes(tiny_onnx())
    turned = dict(reversed(list(contents(**{"model_fp32.onnx": source}).items())))
    write_bundle(
        tmp_path / "again", manifest_fields=dict(reversed(list(fields().items()))), files=turned
    )
    assert snapshot(tmp_path / "again") == snapshot(folder)


def test_readme_program_runs_and_agrees(folder):
    text = (folder / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert program
    done = subprocess.run(
        [sys.executable, "-c", program[1]], cwd=folder, capture_output=True, text=True, check=True
    )
    assert "top-1 agrees for 3 of 3" in done.stdout
    assert float(done.stdout.split()[-1]) < 1e-5
    load_bundle(folder)


def test_readme_digests_verify(folder):
    text = (folder / "README.md").read_text()
    check = re.search(r"```sh\n(sha256sum.*?)```", text, re.DOTALL)
    assert check
    done = subprocess.run(
        ["sh", "-c", check[1]], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == 2
    model = folder / "model_fp32.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert subprocess.run(["sh", "-c", check[1]], cwd=folder, capture_output=True).returncode != 0


def test_readme_tells_what_is_in_the_bundle(tmp_path, folder):
    text = (folder / "README.md").read_text()
    for words in ("# d1 for host-cpu", "97.20 % (deployed)", "8 x 8", "subtract 0.3", "float32"):
        assert words in text, words
    assert "trtexec" not in text
    made, files = jetson()
    board = write_bundle(tmp_path / "board", manifest_fields=made, files=files)
    text = (board.folder / "README.md").read_text()
    assert "sh build_engine.sh" in text
    assert "--duration=15" in text
    assert "python" not in text, "there is no sample to run"
    assert os.access(board.folder / "build_engine.sh", os.X_OK)


def test_names_cannot_break_out_of_the_readme(tmp_path):
    made = fields(name="x\n# y|<b>", notes=())
    text = (
        write_bundle(tmp_path / "b", manifest_fields=made, files=contents()).folder / "README.md"
    ).read_text()
    assert text.startswith("# x # y\\|&lt;b> for host-cpu\n")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_byte_is_noticed(folder, data):
    before = snapshot(folder)
    name = data.draw(st.sampled_from(sorted(before)))
    position = data.draw(st.integers(0, len(before[name]) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(before[name])
    changed[position] ^= flip
    try:
        (folder / name).write_bytes(changed)
        with pytest.raises((CheckFailed, UserError)) as caught:
            load_bundle(folder)
        assert name in caught.value.what
        # Only what says "I am not a bundle" or "of another version" is the user's to solve.
        if isinstance(caught.value, UserError):
            assert name == MANIFEST
    finally:
        (folder / name).write_bytes(before[name])
    load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "named", "how"),
    [
        (lambda f: (f / "model_fp32.onnx").unlink(), "model_fp32.onnx", "is missing"),
        (lambda f: (f / "README.md").unlink(), "README.md", "is missing"),
        (lambda f: (f / "extra.txt").write_text(""), "extra.txt", "is not part of it"),
        (lambda f: (f / "model_fp32.onnx").open("ab").write(b"x"), "model_fp32.onnx", "instead of"),
        (lambda f: os.truncate(f / "model_fp32.onnx", 3), "model_fp32.onnx", "has 3 bytes"),
        (lambda f: (f / "link").symlink_to("README.md"), "link", "is a link"),
        (lambda f: os.truncate(f / MANIFEST, 40), MANIFEST, "is not whole JSON"),
        (lambda f: (f / MANIFEST).open("ab").write(b"\n"), MANIFEST, "was changed"),
    ],
)
def test_damage_names_the_file(folder, change, named, how):
    change(folder)
    with pytest.raises(CheckFailed) as caught:
        load_bundle(folder)
    assert f"the file {named} " in caught.value.what
    assert how in caught.value.what


def test_a_link_in_the_place_of_a_file_is_refused(folder, tmp_path):
    model = folder / "model_fp32.onnx"
    model.rename(tmp_path / "outside.onnx")
    model.symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(CheckFailed, match="is a link"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "C:x", "", ".", "a//b", "a\x00b", MANIFEST]
)
def test_paths_outside_are_refused_in_a_well_sealed_manifest(folder, path):
    """Whoever forges a manifest can forge its digest as well."""
    data = json.loads((folder / MANIFEST).read_text())
    data["files"][path] = {"bytes": 0, "sha256": "0" * 64}
    data["digest"] = ""
    (folder / MANIFEST).write_bytes(render(Manifest.model_validate(data)))
    with pytest.raises(CheckFailed, match=r"manifest\.json lists the path"):
        load_bundle(folder)


@pytest.mark.parametrize("path", ["../x", "/x", "manifest.json", "README.md", "a b"])
def test_writing_refuses_such_paths_too(tmp_path, path):
    with pytest.raises(ValueError, match="cannot be the path"):
        write_bundle(tmp_path / "b", manifest_fields=fields(), files=contents(**{path: b"x"}))
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_bundle(tmp_path, folder):
    for path in (tmp_path / "absent", tmp_path, folder / "README.md"):
        with pytest.raises(UserError, match="is not a bundle"):
            load_bundle(path)
    other = tmp_path / "other"
    other.mkdir()
    for content in ('{"key": "abc"}', "[]", "3"):
        (other / MANIFEST).write_text(content)
        with pytest.raises(UserError, match="describes something else"):
            load_bundle(other)


def test_other_versions_and_unknown_keys(folder):
    data = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(data | {"schema_version": 2}))
    with pytest.raises(UserError, match="schema_version 2"):
        load_bundle(folder)
    (folder / MANIFEST).write_text(json.dumps(data | {"surprise": 1}))
    with pytest.raises(CheckFailed, match='wrong at "surprise"'):
        load_bundle(folder)


def test_a_failed_write_keeps_the_old_bundle(folder, tmp_path, monkeypatch):
    before = snapshot(folder)
    with pytest.raises(FileNotFoundError):
        write_bundle(
            folder,
            manifest_fields=fields(),
            files=contents(**{"model_fp32.onnx": tmp_path / "absent.onnx"}),
        )
    with pytest.raises(ValueError, match=r"names model_fp32\.onnx"):
        write_bundle(
            folder,
            manifest_fields=fields(),
            files={"sample.safetensors": contents()["sample.safetensors"]},
        )
    with pytest.raises(ValueError, match="modles"):
        write_bundle(folder, manifest_fields=fields(modles={}), files=contents())

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module.os, "fsync", full)
    with pytest.raises(UserError, match="full"):
        write_bundle(folder, manifest_fields=fields(name="new"), files=contents())
    monkeypatch.undo()
    assert snapshot(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_failed_swap_puts_the_old_bundle_back(folder, monkeypatch):
    before = snapshot(folder)
    real = os.rename

    def rename(source, target):
        if str(source).endswith(".draft"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(bundle_module.os, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        write_bundle(folder, manifest_fields=fields(name="new"), files=contents())
    monkeypatch.undo()
    assert snapshot(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_killed_between_the_renames(folder):
    """The old bundle is found again, and the next write takes its place as ever."""
    before = snapshot(folder)
    aside = folder.with_name(f".{folder.name}.0123abcd.old")
    stale = folder.with_name(f".{folder.name}.89abcdef.draft")
    other = folder.with_name(f".{folder.name}.x.0123abcd.old")
    folder.rename(aside)
    for path in (stale, other):
        path.mkdir()
    os.utime(stale, (0, 0))
    with pytest.raises(FileNotFoundError):
        write_bundle(folder, manifest_fields=fields(), files={"model_fp32.onnx": folder / "absent"})
    assert snapshot(folder) == before
    assert sorted(folder.parent.iterdir()) == sorted([folder, other])


def test_replacing_drops_what_the_old_one_had(folder):
    write_bundle(folder, manifest_fields=fields(name="new"), files=contents(**{"more/x.bin": b"1"}))
    assert load_bundle(folder).manifest.files["more/x.bin"].bytes == 1
    write_bundle(folder, manifest_fields=fields(name="newer"), files=contents())
    assert load_bundle(folder).manifest.name == "newer"
    assert not (folder / "more").exists()


def test_other_peoples_folders_are_not_replaced(tmp_path):
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "cat.jpg").write_bytes(b"1")
    with pytest.raises(UserError, match="not a bundle, so it is not replaced"):
        write_bundle(mine, manifest_fields=fields(), files=contents())
    (mine / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match="not replaced"):
        write_bundle(mine, manifest_fields=fields(), files=contents())
    assert (mine / "cat.jpg").read_bytes() == b"1"
    with pytest.raises(UserError, match="not replaced"):
        write_bundle(mine / "cat.jpg", manifest_fields=fields(), files=contents())
    empty = tmp_path / "empty"
    empty.mkdir()
    write_bundle(empty, manifest_fields=fields(), files=contents())


def test_a_damaged_bundle_can_be_replaced(folder):
    (folder / "model_fp32.onnx").write_bytes(b"")
    write_bundle(folder, manifest_fields=fields(), files=contents())
    load_bundle(folder)


def test_sample_file_is_plain_little_endian(tmp_path):
    from safetensors.numpy import load

    raw = sample_file(IMAGES.astype(np.float64)[:, :, ::-1], {"int8": LOGITS, "fp32": LOGITS})
    tensors = load(raw)
    assert set(tensors) == {"input", "logits.int8", "logits.fp32"}
    assert tensors["input"].dtype == np.float32
    np.testing.assert_array_equal(tensors["input"], IMAGES[:, :, ::-1])
    assert raw == sample_file(IMAGES[:, :, ::-1], {"fp32": LOGITS, "int8": LOGITS})
