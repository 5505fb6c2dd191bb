from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_export.errors import UserError
from elastic_export.quantize import files
from elastic_export.quantize.record import QuantizationRecord, Site, quantize_int8


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
