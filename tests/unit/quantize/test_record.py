from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_export.errors import UserError
from elastic_export.quantize import files
from elastic_export.quantize.placement import in_force
from elastic_export.quantize.record import (
    PRODUCT_ROLES,
    QuantizationRecord,
    Site,
    quantize_int8,
)


def _site(low: float, high: float, amax: object, axis: int | None = None) -> Site:
    return Site("m", "input", low, high, np.asarray(amax, np.float32), axis, "int8")


def test_symmetric_scale_is_amax_over_127_and_never_zero() -> None:
    site = _site(-1, 1, [127.0, 0.0, 1e-42], axis=0)
    assert site.scale.dtype == np.float32
    assert site.scale[0] == 1.0
    assert site.scale[1] == 1.0
    assert site.scale[2] == np.finfo(np.float32).tiny
    half = site.symmetric_scale(np.float16)
    assert half.dtype == np.float16
    assert np.all(half > 0)


def test_a_float16_scale_stays_finite() -> None:
    assert np.isfinite(_site(-1e9, 1e9, 1e9).symmetric_scale(np.float16))


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_affine_form_holds_zero_exactly_and_the_range_within_a_step(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero = _site(low, high, max(abs(a), abs(b))).affine_u8()
    assert scale > 0
    assert 0 <= zero <= 255
    for value in (low, high, 0.0):
        q = min(max(round(value / float(scale)) + zero, 0), 255)
        assert abs((q - zero) * float(scale) - value) <= 1.01 * float(scale)


def test_affine_form_of_a_relu_starts_at_zero() -> None:
    scale, zero = _site(0.5, 2.55, 2.55).affine_u8()
    assert zero == 0
    assert scale == pytest.approx(0.01)


def test_quantize_int8_rounds_halves_to_even_keeps_zero_and_saturates() -> None:
    site = _site(-127, 127, [127.0, 254.0], axis=0)
    values = np.array([[0.0, 0.5, 1.5, -300.0], [0.0, 1.0, 3.0, 300.0]], np.float32)
    expected = np.array([[0, 0, 2, -127], [0, 0, 2, 127]], np.int8)
    assert np.array_equal(quantize_int8(values, site), expected)


def test_round_trip_is_exact(tmp_path: Path, by_hand: QuantizationRecord) -> None:
    by_hand.save(tmp_path / "record")
    again = QuantizationRecord.load(tmp_path / "record")
    assert again == by_hand
    assert again.digest == by_hand.digest
    assert list(again.sites) == list(by_hand.sites)
    assert again.site("a", "input").amax.shape == ()


def test_saving_twice_gives_the_same_bytes_and_leaves_no_other_files(
    tmp_path: Path, by_hand: QuantizationRecord
) -> None:
    by_hand.save(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    by_hand.with_float({"a": "Because."}).save(tmp_path)
    by_hand.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert len(first) == 2


def test_a_kill_while_writing_leaves_the_old_record(
    tmp_path: Path, by_hand: QuantizationRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand.save(tmp_path)
    write = files.write_atomically

    def dies(path: Path, data: bytes) -> None:
        if path.name == files.RECORD:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(files, "write_atomically", dies)
    changed = by_hand.with_float({"a": "Because."})
    changed.sites[("b", "weight")].amax[0] = 9.0
    with pytest.raises(KeyboardInterrupt):
        changed.save(tmp_path)
    assert QuantizationRecord.load(tmp_path).quantized_modules() == ["a", "b", "c"]


def test_with_float_returns_a_changed_copy(by_hand: QuantizationRecord) -> None:
    changed = by_hand.with_float({"b": "It costs accuracy."})
    assert by_hand.quantized_modules() == ["a", "b", "c"]
    assert changed.quantized_modules() == ["a", "c"]
    assert changed.site("b", "output").reason == "It costs accuracy."
    assert changed.modules() == ["a", "b", "c", "d"]
    assert changed.digest != by_hand.digest


def with_rules(record: QuantizationRecord) -> QuantizationRecord:
    """The record with an attention, and layers that rules of different flavours hold back."""
    held = {"a": "gemv", "b": "classifier,narrow", "c": ""}
    sites = {
        key: replace(site, policy="float", reason="A rule.", rule=held[site.module])
        if held.get(site.module)
        else site
        for key, site in record.sites.items()
    }
    sites["a", "skip"] = replace(sites["a", "input"], role="skip")
    for role in PRODUCT_ROLES:
        amax = np.asarray(2.0, np.float32)
        site = Site("m", role, -1.0, 2.0, amax, None, "float", "Attention is float.", "attention")
        sites["m", role] = site
    return replace(record, sites=sites)


def test_layers_and_attentions_are_told_apart(by_hand: QuantizationRecord) -> None:
    record = with_rules(by_hand)
    assert record.modules() == ["a", "b", "c", "d"]
    assert record.attentions() == ["m"]
    assert record.int8_attentions() == []
    assert record.quantized_modules() == ["c"]


def test_a_flavour_lifts_the_rules_that_are_not_in_force(by_hand: QuantizationRecord) -> None:
    record = with_rules(by_hand)
    cpu, strong = record.placed("ort-cpu"), record.placed("trt-strong")
    assert strong == record, "every rule is in force for TensorRT"
    free = [
        name for name in ("a", "b") if not record.site(name, "input").rules & in_force("ort-cpu")
    ]
    assert "a" in free, "matrix-vector products pay on a CPU"
    assert cpu.quantized_modules() == [*free, "c"]
    assert cpu.site("a", "skip").policy == "int8"
    assert (cpu.site("a", "input").reason, cpu.site("a", "input").rule) == ("", "")
    assert cpu.site("d", "input").reason == "It is the classifier.", "a hard reason stays"
    assert record.quantized_modules() == ["c"], "a copy"


def test_one_rule_in_force_is_enough(by_hand: QuantizationRecord) -> None:
    sites = with_rules(by_hand).sites
    sites["a", "input"] = replace(sites["a", "input"], rule="gemv,attention")
    record = replace(by_hand, sites=sites)
    assert record.placed("ort-cpu").site("a", "input").policy == "float"


def test_attention_is_lifted_on_request(by_hand: QuantizationRecord) -> None:
    record = with_rules(by_hand)
    asked = record.placed("trt-weak", attention="int8")
    assert asked.int8_attentions() == ["m"]
    assert asked.quantized_modules() == ["c"]
    guarded = record.with_float({"m": "It is sensitive.", "a": "It is sensitive."})
    assert guarded.placed("trt-weak", attention="int8").int8_attentions() == []
    assert "a" not in guarded.placed("ort-cpu").quantized_modules()


def test_a_flavour_that_is_none(by_hand: QuantizationRecord) -> None:
    with pytest.raises(UserError, match='no INT8 flavour "plain"'):
        by_hand.placed("plain")


def test_roles_and_rules_survive_the_disk_and_count_in_the_digest(
    tmp_path: Path, by_hand: QuantizationRecord
) -> None:
    record = with_rules(by_hand)
    record.save(tmp_path)
    assert QuantizationRecord.load(tmp_path) == record
    changes = {
        "rule": "narrow",
        "reason": "Another.",
        "min": -0.5,
        "amax": np.float32(1) * np.ones(()),
    }
    digests = {record.digest, by_hand.digest}
    for field, value in changes.items():
        sites = dict(record.sites)
        sites["m", "value"] = replace(sites["m", "value"], **{field: value})
        digests.add(replace(record, sites=sites).digest)
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("key", "fields", "message"),
    [
        (("a", "input"), {"rule": "fast"}, 'placement rule "fast", which this release'),
        (("a", "input"), {"policy": "int8"}, "the policy int8 with the reason"),
        (("c", "input"), {"policy": "float"}, "the policy float with the reason"),
        (("c", "input"), {"rule": "gemv"}, "the policy int8"),
        (("c", "input"), {"axis": 1, "amax": np.ones(3, np.float32)}, "the axis 1"),
        (("c", "output"), {"axis": 0, "amax": np.ones(3, np.float32)}, "the axis 0"),
        (("m", "probs"), None, "misses the probs of m"),
        (("a", "output"), None, "misses the output of a"),
        (("a", "weight"), None, "misses the weight of a"),
    ],
)
def test_records_that_contradict_themselves(
    tmp_path: Path,
    by_hand: QuantizationRecord,
    key: tuple[str, str],
    fields: dict[str, object] | None,
    message: str,
) -> None:
    sites = dict(with_rules(by_hand).sites)
    site = sites.pop(key)
    if fields is not None:
        sites[key] = replace(site, **fields)
    replace(by_hand, sites=sites).save(tmp_path)
    with pytest.raises(UserError, match=message):
        QuantizationRecord.load(tmp_path)


def test_a_site_that_is_there_twice_and_ranges_of_no_site(
    tmp_path: Path, by_hand: QuantizationRecord
) -> None:
    by_hand.save(tmp_path)
    path = tmp_path / files.RECORD
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"sites": [*content["sites"], content["sites"][0]]}))
    with pytest.raises(UserError, match=r"holds the input of a in .* twice"):
        QuantizationRecord.load(tmp_path)
    path.write_text(json.dumps(content | {"sites": content["sites"][:-3]}))
    with pytest.raises(UserError, match='holds "d:input" for no site'):
        QuantizationRecord.load(tmp_path)


def test_missing_record(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no quantization record"):
        QuantizationRecord.load(tmp_path / "nowhere")


def test_missing_or_changed_ranges(tmp_path: Path, by_hand: QuantizationRecord) -> None:
    by_hand.save(tmp_path)
    ranges = next(tmp_path.glob("*.safetensors"))
    content = ranges.read_bytes()
    ranges.write_bytes(content[:-1] + b"\x00")
    with pytest.raises(UserError, match="was changed after"):
        QuantizationRecord.load(tmp_path)
    ranges.unlink()
    with pytest.raises(UserError, match="misses its file"):
        QuantizationRecord.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema version 9"),
        ({"schema_version": 1}, "schema version 1, this release reads 2"),
        ({"images": "many"}, "damaged at images"),
        ({"surprise": 1}, "damaged at surprise"),
        ({"amax_file": "../../secret"}, "damaged at amax_file"),
    ],
)
def test_foreign_content(
    tmp_path: Path, by_hand: QuantizationRecord, change: dict[str, object], message: str
) -> None:
    by_hand.save(tmp_path)
    path = tmp_path / files.RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        QuantizationRecord.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\udcff"])
def test_not_a_record(tmp_path: Path, text: str) -> None:
    (tmp_path / files.RECORD).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"record\.json"):
        QuantizationRecord.load(tmp_path)


@pytest.mark.parametrize(
    ("low", "high", "amax", "message"),
    [
        (-1.0, 1.0, np.nan, "not a finite"),
        (-1.0, 1.0, -1.0, "not a finite"),
        (1.0, -1.0, 1.0, "above its maximum"),
        (-1.0, 1.0, [1.0], "shape"),
    ],
)
def test_impossible_ranges(
    tmp_path: Path, low: float, high: float, amax: object, message: str
) -> None:
    record = QuantizationRecord({("m", "input"): _site(low, high, amax)}, "max", 1, "d", "m")
    record.save(tmp_path)
    with pytest.raises(UserError, match=message):
        QuantizationRecord.load(tmp_path)
