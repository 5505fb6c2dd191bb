"""What emit refuses: each bad record is named by its layer, and nothing half-written is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from elastic_export.errors import CheckFailed, UserError
from elastic_export.export import ExportTable, emit
from elastic_export.quantize.placement import in_force
from elastic_export.quantize.record import QuantizationRecord

LAYER = "blocks.1.fc1"


def changed(record: QuantizationRecord, role: str, **fields: object) -> QuantizationRecord:
    sites = dict(record.sites)
    sites[LAYER, role] = replace(sites[LAYER, role], **fields)
    return replace(record, sites=sites)


def test_the_report_says_what_stayed_float_and_why(tiny, tmp_path):
    report = emit("trt-weak", tiny.exported.path, tiny.exported.table, tiny.record, tmp_path / "a")
    assert report.kept_float.keys() == {"patch_embed", "head"}
    assert len(report.int8) == 8
    assert set(report.to_json()) >= {"flavour", "path", "int8", "kept_float", "size_ratio", "notes"}
    kept = tiny.record.with_float({LAYER: "It is sensitive."})
    report = emit("ort-cpu", tiny.exported.path, tiny.exported.table, kept, tmp_path / "a")
    assert report.kept_float[LAYER] == "It is sensitive."


def test_flavours_place_layers_by_their_own_rules(elasticvit, tmp_path):
    """Matrix-vector products are left out for TensorRT, not for ONNX Runtime."""
    parts = (elasticvit.exported.path, elasticvit.exported.table, elasticvit.record)
    cpu = emit("ort-cpu", *parts, tmp_path / "cpu.onnx")
    strong = emit("trt-strong", *parts, tmp_path / "strong.onnx")
    rules = {n: elasticvit.record.site(n, "weight").rules for n in elasticvit.record.modules()}
    for report in (cpu, strong):
        free = {name for name, held in rules.items() if not held & in_force(report.flavour)}
        assert set(report.int8) == free
    lone = {name for name, held in rules.items() if held == {"gemv"}}
    assert "pre_head_1" in lone, "it reads pooled tokens"
    assert lone <= set(cpu.int8)
    why = "It runs on one position of an image, a matrix-vector product at batch 1."
    assert {strong.kept_float[name] for name in lone} == {why}


@pytest.mark.parametrize("flavour", ["ort-cpu", "trt-strong"])
@pytest.mark.parametrize(
    ("role", "fields", "error", "message"),
    [
        ("input", {"max": float("nan")}, CheckFailed, "unusable range"),
        ("input", {"amax": np.float32(np.inf) * np.ones(())}, CheckFailed, "unusable range"),
        ("input", {"amax": np.zeros((), np.float32)}, CheckFailed, "unusable range"),
        ("input", {"min": 3.0, "max": 1.0}, CheckFailed, "unusable range"),
        ("weight", {"amax": np.zeros(64, np.float32)}, CheckFailed, "unusable range"),
        ("weight", {"amax": np.full(64, np.nan, np.float32)}, CheckFailed, "unusable range"),
        ("weight", {"amax": np.ones(32, np.float32)}, UserError, "32 weight ranges"),
        ("output", {"max": float("inf")}, CheckFailed, "unusable range"),
    ],
)
def test_unusable_ranges(flavour, role, fields, error, message, tiny, tmp_path):
    record = changed(tiny.record, role, **fields)
    with pytest.raises(error, match=message) as caught:
        emit(flavour, tiny.exported.path, tiny.exported.table, record, tmp_path / "no.onnx")
    assert LAYER in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("role", ["input", "weight", "output"])
def test_a_missing_site(role, tiny, tmp_path):
    sites = {key: site for key, site in tiny.record.sites.items() if key != (LAYER, role)}
    record = replace(tiny.record, sites=sites)
    with pytest.raises(UserError, match=f'no {role} site for the layer "{LAYER}"'):
        emit("ort-cpu", tiny.exported.path, tiny.exported.table, record, tmp_path / "no.onnx")


def test_a_record_of_another_model(tiny, vit, tmp_path):
    other = replace(tiny.record, model_digest="0" * 64)
    with pytest.raises(UserError, match="calibrated on other weights"):
        emit("ort-cpu", tiny.exported.path, tiny.exported.table, other, tmp_path / "no.onnx")
    nameless = replace(vit.record, model_digest="")
    with pytest.raises(UserError, match=r'names the layer "patch_embed\.proj"'):
        emit("ort-cpu", tiny.exported.path, tiny.exported.table, nameless, tmp_path / "no.onnx")


def test_a_table_of_another_file(tiny, vit, tmp_path):
    with pytest.raises(CheckFailed, match="has no such node or weight"):
        emit("ort-cpu", vit.exported.path, tiny.exported.table, tiny.record, tmp_path / "no.onnx")


def test_nothing_to_quantize(tiny, tmp_path):
    names = dict.fromkeys(tiny.record.modules(), "It is sensitive.")
    with pytest.raises(CheckFailed, match="leaves every layer in floating point"):
        emit(
            "ort-cpu",
            tiny.exported.path,
            tiny.exported.table,
            tiny.record.with_float(names),
            tmp_path / "no.onnx",
        )


def test_files_that_are_no_models(tiny, tmp_path):
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(tiny.exported.path.read_bytes()[:5000])
    missing = tmp_path / "missing.onnx"
    for path, told in ((missing, "There is no file"), (truncated, "cannot be read as an ONNX")):
        with pytest.raises(UserError, match=told):
            emit("ort-cpu", path, tiny.exported.table, tiny.record, tmp_path / "no.onnx")
    with pytest.raises(UserError, match=r'There is no flavour "ort-gpu"\. Did you mean "ort-cpu"'):
        emit("ort-gpu", tiny.exported.path, ExportTable(), tiny.record, tmp_path / "no.onnx")


def test_a_failed_write_keeps_the_old_file(tiny, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full_disk(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        emit("ort-cpu", tiny.exported.path, tiny.exported.table, tiny.record, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
