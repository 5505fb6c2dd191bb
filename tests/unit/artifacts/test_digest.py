"""Digests are equal for equal content and for nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from elastic_export.artifacts.digest import canonical_json, sha256_file, sha256_json, sha256_tree
from elastic_export.config.recipe import TrainConfig


def test_equal_values_have_one_form() -> None:
    assert canonical_json({"b": (1, 2), "a": None}) == '{"a":null,"b":[1,2]}'
    assert sha256_json({"x": [1, 2]}) == sha256_json({"x": (1, 2)})
    assert sha256_json({"x": 1}) != sha256_json({"x": "1"})


def test_schemas_and_dataclasses_are_taken_apart() -> None:
    @dataclass
    class Pair:
        left: int
        right: tuple[int, ...]

    assert canonical_json(Pair(1, (2,))) == '{"left":1,"right":[2]}'
    assert sha256_json(TrainConfig(steps=3)) == sha256_json(TrainConfig(steps=3, batch_size=64))
    assert sha256_json(TrainConfig(steps=3)) != sha256_json(TrainConfig(steps=4))


@pytest.mark.parametrize("value", [{1: "a"}, {"a": Path("x")}, {"a": object()}])
def test_values_without_a_json_form_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_without_a_json_form_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": value})


def test_file_digest_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == expected


def test_tree_digest_sees_names_and_bytes_only(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"1")
    before = sha256_tree(tmp_path)
    os.utime(tmp_path / "sub" / "a", (0, 0))
    (tmp_path / "empty").mkdir()
    assert sha256_tree(tmp_path) == before
    (tmp_path / "sub" / "a").rename(tmp_path / "sub" / "b")
    assert sha256_tree(tmp_path) != before
