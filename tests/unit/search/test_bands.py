from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_export.errors import UserError
from elastic_export.search import bands, pareto_front
from elastic_export.search.bands import band_of


@given(low=st.integers(1, 10**9), ratio=st.floats(1.01, 1e4), keep=st.integers(1, 12))
def test_bands_have_equal_ratios_and_meet(low: int, ratio: float, keep: int) -> None:
    ranges = bands(low, low * ratio, keep)
    assert len(ranges) == keep
    assert ranges[0][0] == low
    assert ranges[-1][1] == low * ratio
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert np.allclose([b / a for a, b in ranges], ratio ** (1 / keep))


@pytest.mark.parametrize(("low", "high", "keep"), [(0, 5, 2), (5, 4, 1), (5, 5, 2), (1, 2, 0)])
def test_what_cannot_be_divided(low: float, high: float, keep: int) -> None:
    with pytest.raises(UserError, match="cannot be divided"):
        bands(low, high, keep)


def test_borders_belong_to_the_upper_band_and_the_ends_are_inside() -> None:
    ranges = [(10.0, 20.0), (20.0, 40.0)]
    macs = np.array([9, 10, 19, 20, 39, 40, 41])
    assert band_of(macs, ranges).tolist() == [-1, 0, 0, 1, 1, 1, -1]
    assert band_of(np.array([7]), bands(7, 7, 1)).tolist() == [0]


@given(low=st.integers(1, 10**12), more=st.integers(1, 10**12), keep=st.integers(1, 9))
def test_both_ends_of_a_range_have_a_band(low: int, more: int, keep: int) -> None:
    ranges = bands(low, low + more, keep)
    ends = np.array([low, low + more], dtype=np.int64)
    assert band_of(ends, ranges).tolist() == [0, keep - 1]


points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30)


@given(points)
def test_front_holds_exactly_what_nothing_dominates(pairs: list[tuple[int, int]]) -> None:
    cost = np.array([c for c, _ in pairs])
    value = np.array([v for _, v in pairs])
    front = pareto_front(cost, value).tolist()
    for i, (c, v) in enumerate(pairs):
        dominated = any(a <= c and b >= v and (a, b) != (c, v) for a, b in pairs)
        repeated = (c, v) in pairs[:i]
        assert (i in front) == (not dominated and not repeated)
    assert [pairs[i] for i in front] == sorted(pairs[i] for i in front)
