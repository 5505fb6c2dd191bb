"""YAML is read the way its users mean it; what cannot be read is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_export.config.reading import parse_yaml, read_mapping
from elastic_export.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),  # 124 in YAML 1.1
        ("1e9", 1_000_000_000),  # text in YAML 1.1
        ("1.0e9", 1.0e9),
        ("2.5e-3", 2.5e-3),
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("010", 10),  # 8 in YAML 1.1
        ("1_000", 1000),
        ("on", "on"),  # true in YAML 1.1
        ("no", "no"),
        ("True", True),
        ("~", None),
        ("", None),
        ("2026-01-02", "2026-01-02"),
        ("10.3", 10.3),
        ("'10.3'", "10.3"),
        ("{on: {a: b}}", {"on": {"a": "b"}}),
        ("[1, 2.0, x]", [1, 2.0, "x"]),
        ("1.7.1", "1.7.1"),
        ("-", [None]),
    ],
)
def test_plain_values(text: str, value: object) -> None:
    read = parse_yaml(text, "it")
    assert read == value
    assert type(read) is type(value)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_python_writes_is_read_back(number: float) -> None:
    assert parse_yaml(repr(number), "it") == number


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", 'line 2, column 1: the key "a" is given twice'),
        ("b:\n  c: 1\n  c: 2", 'the key "c" is given twice'),
        ("1: 2", "the key 1 is not text"),
        ("null: 2", "the key None is not text"),
        ("a: [1", "line 1"),
        ("a:\n\tb: 1", "line 2"),
        ("a: 1\n b: 2", "line 2"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: 1e999", "too large"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("a: \x00", "special characters"),
        ("&a [*a]", "not valid YAML|more than"),
        ("a: *b", "undefined alias"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_bad_yaml_names_the_place(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse_yaml(text, "the recipe x.yaml")
    assert caught.value.what.startswith("The recipe x.yaml")


def test_anchors_are_fine_until_they_explode() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x", "it") == {"a": {"b": 1}, "c": {"b": 1}}
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    with pytest.raises(UserError, match="unfolds to more than"):
        parse_yaml(bomb, "it")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"just words", "a single str instead of keys"),
        (b"- a\n- b", "a single list instead of keys"),
        (b"\x80\x02}q\x00.", "is not text"),
        (b"PK\x03\x04\xff\xfe", "is not text"),
        (b"x" * (2 << 20), "has 2 MiB"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_mapping(path, "recipe")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_mapping(tmp_path / "none.yaml", "recipe")
    with pytest.raises(UserError, match="cannot be read"):
        read_mapping(tmp_path, "recipe")
