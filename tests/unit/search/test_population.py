from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_export.search import bands
from elastic_export.search.bands import band_of
from elastic_export.search.population import breed, draw_into_bands, new_rows, take_per_band
from elastic_export.space import Axis, Costs, Space

DEPTH = 12
SPACE = Space(
    [Axis("depth", tuple(range(2, DEPTH + 1)))]
    + [Axis(f"blocks.{i}.width", (1, 2, 4, 8, 16, 32), ("depth", i)) for i in range(DEPTH)]
)


def costs(genes: np.ndarray) -> Costs:
    """Sum of the squared widths of the active blocks."""
    depth = SPACE.values(genes, "depth")
    macs = np.zeros(len(genes), dtype=np.int64)
    for i in range(DEPTH):
        macs += (depth > i) * SPACE.values(genes, f"blocks.{i}.width").astype(np.int64) ** 2
    return Costs(macs, macs, macs, macs)


rows = st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), max_size=20)


@given(rows, rows)
def test_new_rows_drops_known_and_repeated(genes: list[list[int]], known: list[list[int]]) -> None:
    got = new_rows(
        np.array(genes, dtype=np.int64).reshape(-1, 3),
        np.array(known, dtype=np.int64).reshape(-1, 3),
    ).tolist()
    expected = [row for i, row in enumerate(genes) if row not in genes[:i] and row not in known]
    assert got == expected


@given(
    st.lists(st.integers(-1, 3), max_size=40),
    st.lists(st.integers(0, 6), min_size=4, max_size=4),
)
def test_take_per_band_takes_the_first_of_each(band: list[int], quota: list[int]) -> None:
    left = list(quota)
    expected = []
    for i, b in enumerate(band):
        if b >= 0 and left[b] > 0:
            left[b] -= 1
            expected.append(i)
    assert take_per_band(np.array(band, dtype=int), np.array(quota)).tolist() == expected


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), keep=st.integers(1, 8), quota=st.integers(1, 12))
def test_every_band_is_filled_even_where_uniform_draws_never_fall(
    seed: int, keep: int, quota: int
) -> None:
    # From 2 to 12288 MACs; uniform draws rarely leave 500 .. 6000.
    ranges = bands(30, 12000, keep)
    known = SPACE.sample_genes(np.random.default_rng(1), 50)
    wanted = np.full(keep, quota)
    drawn = draw_into_bands(SPACE, costs, ranges, wanted, known, np.random.default_rng(seed))
    band = band_of(costs(drawn).macs, ranges)
    assert np.bincount(band, minlength=keep).tolist() == wanted.tolist()
    assert len(new_rows(drawn, known)) == len(drawn)
    assert (SPACE.canonical_genes(drawn) == drawn).all()


def test_draws_differ_by_seed_alone() -> None:
    ranges, quota = bands(30, 12000, 4), np.full(4, 5)
    none = SPACE.sample_genes(np.random.default_rng(1), 1)[:0]
    one, again, other = (
        draw_into_bands(SPACE, costs, ranges, quota, none, np.random.default_rng(s))
        for s in (5, 5, 6)
    )
    assert (one == again).all()
    assert not np.array_equal(one, other)


def test_an_exhausted_band_gives_what_is_left() -> None:
    space = Space([Axis("width", (1, 2, 3))])

    def cost(genes: np.ndarray) -> Costs:
        macs = space.values(genes, "width").astype(np.int64)
        return Costs(macs, macs, macs, macs)

    rng = np.random.default_rng(0)
    drawn = draw_into_bands(
        space, cost, [(1.0, 1.5), (1.5, 3.0)], np.array([4, 4]), np.array([[1]]), rng
    )
    assert sorted(drawn.ravel().tolist()) == [0, 2]


def test_crossed_children_take_every_gene_from_a_parent() -> None:
    parents = SPACE.canonical_genes(np.stack([SPACE.counts - 1, np.zeros_like(SPACE.counts)]))
    parents[1] = [DEPTH - 2, *[1] * DEPTH]
    rng = np.random.default_rng(0)
    children = breed(SPACE, parents, 200, mutation=1.0, crossover=1.0, rng=rng)
    assert ((children == parents[0]) | (children == parents[1])).all()
    mixed = ~((children == parents[0]).all(axis=1) | (children == parents[1]).all(axis=1))
    assert 60 < mixed.sum() < 140, "half of the pairs have two different parents"


def test_mutants_change_at_most_one_gene_without_mutation_rate_and_more_with_it() -> None:
    parent = SPACE.canonical_genes(SPACE.counts - 1)
    rng = np.random.default_rng(0)
    least = breed(SPACE, parent, 300, mutation=0.0, crossover=0.0, rng=rng)
    # A smaller depth also clears the genes of the blocks it cuts off.
    full_depth = least[least[:, 0] == parent[0, 0]]
    assert (full_depth != parent).sum(axis=1).max() == 1
    assert len(full_depth) > 200
    most = breed(SPACE, parent, 300, mutation=1.0, crossover=0.0, rng=rng)
    assert len(np.unique(most[:, 0])) == DEPTH - 1
    assert (SPACE.canonical_genes(most) == most).all()
