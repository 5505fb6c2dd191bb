"""Populations as gene matrices: drawing them into cost bands, and breeding; no loop over rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from elastic_export.search.bands import band_of
from elastic_export.space import Costs, Space

__all__ = ["CostOf", "breed", "draw_into_bands", "new_rows", "take_per_band"]

CostOf = Callable[[np.ndarray], Costs]
Ranges = list[tuple[float, float]]

_DRAWN = 1024
_DRAWS = 8
_CLIMBERS = 128
_CLIMB_STEPS = 400
_PATIENCE = 40


def new_rows(genes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Drop rows that occur in ``known`` or earlier in ``genes``; both canonical (n, axes)."""
    if len(genes) == 0:
        return genes
    keys = _keys(genes)
    first = np.unique(keys, return_index=True)[1]
    keep = np.zeros(len(genes), dtype=bool)
    keep[first] = True
    if len(known):
        keep &= ~np.isin(keys, _keys(known))
    return genes[keep]


def take_per_band(band: np.ndarray, quota: np.ndarray) -> np.ndarray:
    """Choose the first ``quota[b]`` entries of each band ``b``: ascending indices into ``band``."""
    inside = np.flatnonzero(band >= 0)
    by_band = inside[np.argsort(band[inside], kind="stable")]
    counts = np.bincount(band[by_band], minlength=len(quota))
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    rank = np.arange(len(by_band)) - np.repeat(first, counts)
    return np.sort(by_band[rank < np.repeat(quota, counts)])


def draw_into_bands(
    space: Space,
    costs: CostOf,
    ranges: Ranges,
    quota: np.ndarray,
    known: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw new rows at random until each band has its quota, as far as that is possible.

    First uniform draws with rejection; then, for bands that few draws hit, walks from the
    nearest rows that change one gene at a time and never move away from the band.

    Args:
        space: Where to draw from.
        costs: Costs of canonical gene rows.
        ranges: The bands.
        quota: Rows wanted in each band, int (bands,).
        known: Rows not to draw, canonical (n, axes).
        rng: The randomness.

    Returns:
        Distinct canonical rows (n, axes), at most ``quota`` of each band.
    """
    ends = np.stack([space.encode(space.min()), space.encode(space.max())])
    seen = new_rows(ends, known[:0])
    for _ in range(_DRAWS):
        drawn = new_rows(space.sample_genes(rng, _DRAWN), seen)
        seen = np.concatenate((seen, drawn))
        fresh, macs = _fresh(seen, known, costs)
        if len(drawn) == 0 or (_missing(macs, ranges, quota) == 0).all():
            break
    for band in np.flatnonzero(_missing(macs, ranges, quota)):
        walked = _walk_into(space, costs, ranges, int(band), int(quota[band]), seen, known, rng)
        seen = np.concatenate((seen, new_rows(walked, seen)))
        fresh, macs = _fresh(seen, known, costs)
    return fresh[take_per_band(band_of(macs, ranges), quota)]


def breed(
    space: Space,
    parents: np.ndarray,
    n: int,
    *,
    mutation: float,
    crossover: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Make children of random parents.

    A share ``crossover`` of them takes each gene from one of two parents; the others are one
    parent with each gene drawn anew with probability ``mutation``, one gene at least.

    Args:
        space: The genes' space.
        parents: Canonical rows (p, axes).
        n: Number of children.
        mutation: Probability of a gene.
        crossover: Share of the children.
        rng: The randomness.

    Returns:
        Canonical rows (n, axes); some may be equal to each other or to a parent.
    """
    axes = parents.shape[1]
    first = parents[rng.integers(len(parents), size=n)]
    second = parents[rng.integers(len(parents), size=n)]
    crossed = rng.random((n, 1)) < crossover
    swapped = crossed & (rng.random((n, axes)) < 0.5)
    changed = rng.random((n, axes)) < mutation
    changed[np.arange(n), rng.integers(axes, size=n)] = True
    anew = rng.integers(0, space.counts, size=(n, axes))
    children = np.where(swapped, second, np.where(changed & ~crossed, anew, first))
    return space.canonical_genes(children)


def _keys(genes: np.ndarray) -> np.ndarray:
    """View each row as one comparable item."""
    rows = np.ascontiguousarray(genes, dtype=np.int64)
    return rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()


def _fresh(seen: np.ndarray, known: np.ndarray, costs: CostOf) -> tuple[np.ndarray, np.ndarray]:
    fresh = new_rows(seen, known)
    macs = costs(fresh).macs if len(fresh) else np.zeros(0, dtype=np.int64)
    return fresh, macs


def _missing(macs: np.ndarray, ranges: Ranges, quota: np.ndarray) -> np.ndarray:
    band = band_of(macs, ranges)
    have = np.bincount(band[band >= 0], minlength=len(ranges))
    return np.maximum(quota - have, 0)


def _walk_into(
    space: Space,
    costs: CostOf,
    ranges: Ranges,
    band: int,
    wanted: int,
    seen: np.ndarray,
    known: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Walk rows towards a band and about inside it; returns the rows met there."""
    low, high = np.log(ranges[band])

    def distance(macs: np.ndarray) -> np.ndarray:
        place = np.log(np.maximum(macs, 1))
        return np.maximum(np.maximum(low - place, place - high), 0.0)

    away = distance(costs(seen).macs)
    nearest = np.argsort(away, kind="stable")[:_CLIMBERS]
    rows = np.resize(seen[nearest], (_CLIMBERS, seen.shape[1]))
    away = np.resize(away[nearest], _CLIMBERS)
    met = seen[:0]
    walker = np.arange(_CLIMBERS)
    idle = 0
    for _ in range(_CLIMB_STEPS):
        moved = rows.copy()
        axis = rng.integers(rows.shape[1], size=_CLIMBERS)
        step = rng.choice((-1, 1), size=_CLIMBERS)
        moved[walker, axis] = np.clip(moved[walker, axis] + step, 0, space.counts[axis] - 1)
        moved = space.canonical_genes(moved)
        macs = costs(moved).macs
        there = distance(macs)
        inside = moved[band_of(macs, ranges) == band]
        found = new_rows(inside, np.concatenate((known, met)))
        idle = 0 if len(found) or (there < away).any() else idle + 1
        # Sideways steps count as well: inside the band they are what finds more rows.
        accepted = there <= away
        rows = np.where(accepted[:, None], moved, rows)
        away = np.where(accepted, there, away)
        met = np.concatenate((met, found))
        if len(met) >= wanted or idle == _PATIENCE:
            break
    return met
