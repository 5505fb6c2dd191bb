"""N:M choices of layers: what is possible, and what is said of the rest."""

from __future__ import annotations

import pytest

from elastic_export.families.patterns import check_patterns_of

LAYERS = {"a": {24, 48}, "b": {16}}


@pytest.mark.parametrize(
    ("nm", "nm_of"),
    [
        (("dense",), {}),
        (("1:4", "2:4", "dense"), {"b": ("1:16",)}),
        (("2:4", "4:8", "dense"), {}),
    ],
)
def test_possible(nm: tuple[str, ...], nm_of: dict[str, tuple[str, ...]]) -> None:
    check_patterns_of(nm, nm_of, LAYERS)


@pytest.mark.parametrize(
    ("nm", "nm_of", "said"),
    [
        (("dense", "2:4"), {}, "nm must list different patterns from sparse to dense"),
        (("2:4", "2:4"), {}, "different patterns"),
        (("dense",), {"a": ("2:4", "1:4")}, "a must list"),
        (("dense",), {"c": ("2:4",)}, "names c, which is no layer"),
        (("1:16",), {}, r"multiples of its M, not \[24\] \(a\)"),
    ],
)
def test_impossible(nm: tuple[str, ...], nm_of: dict[str, tuple[str, ...]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_patterns_of(nm, nm_of, LAYERS)
