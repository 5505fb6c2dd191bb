"""Evolution under cost bands: the best descendant of each band, and all that was tried.

After the regularised and banded searches of Once-for-all (Cai et al., arXiv 1908.09791) and
AlphaNet (Wang et al., arXiv 2102.07954), on accuracies that are measured, not predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elastic_export.config.recipe import SearchConfig
from elastic_export.errors import CheckFailed, UserError
from elastic_export.progress import Progress, no_progress
from elastic_export.search.bands import band_of, bands
from elastic_export.search.pareto import pareto_front
from elastic_export.search.population import (
    CostOf,
    breed,
    draw_into_bands,
    new_rows,
    take_per_band,
)
from elastic_export.search.state import load_state, save_state
from elastic_export.space import Space, Spec

__all__ = ["Candidate", "SearchResult", "evolve"]

Evaluate = Callable[[Sequence[Spec]], Sequence[float]]

# Specs handed to the evaluation at once: enough to share work, few enough to see progress.
_TOGETHER = 16
_CHILDREN_PER_PLACE = 16
_BREEDING_ROUNDS = 4


@dataclass(frozen=True)
class Candidate:
    """A descendant that was evaluated; ``accuracy`` in percent on the search split."""

    spec: Spec
    macs: int
    accuracy: float


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        kept: The best candidate of each band, by ascending MACs; ties go to the cheaper.
        evaluated: All candidates, in the order of their evaluation.
        front: The Pareto front of ``evaluated``, by ascending MACs.
        generations: Generations after the first population; fewer than asked where the bands
            hold nothing new.
        resumed_from: Populations found evaluated in the saved state, the first included.
        restarted: Why a saved state was of no use, else empty.
    """

    kept: list[Candidate]
    evaluated: list[Candidate]
    front: list[Candidate]
    generations: int
    resumed_from: int = 0
    restarted: str = ""


def evolve(
    space: Space,
    costs: CostOf,
    evaluate: Evaluate,
    config: SearchConfig,
    *,
    seed: int,
    work: Path,
    progress: Progress = no_progress,
) -> SearchResult:
    """Search for the most accurate descendant of each MAC band.

    The first population is drawn evenly over the bands; each generation breeds as many children
    from the best quarter of every band. No spec is evaluated twice, and none outside the bands.

    Args:
        space: What can be chosen.
        costs: Costs of canonical gene rows (n, axes); ``macs`` is what the bands divide.
        evaluate: From specs to their accuracies; must depend on nothing but the spec.
        config: Budget, bands to keep, population, generations and rates. A budget that begins at
            0 begins at the smallest descendant.
        seed: All randomness is a function of it and of the generation.
        work: A folder of this search's own; ``search.json`` in it is written after each
            generation and resumed from. It knows the space, the settings and the seed, not what
            ``evaluate`` measures.
        progress: Told of the evaluations.

    Raises:
        UserError: A band holds no descendant, or the state cannot be written.
        CheckFailed: An accuracy is not a finite number.
    """
    run = _Run(space, costs, evaluate, config, seed, work / "search.json")
    progress.start("search", config.population * (config.generations + 1))
    try:
        restarted = run.resume()
        resumed_from = run.turn
        progress.advance(len(run.genes))
        while run.turn <= config.generations:
            population = run.next_population()
            if len(population) == 0:
                break
            run.add(population, progress)
    finally:
        progress.finish()
    return run.result(resumed_from, restarted)


class _Run:
    """Everything evaluated so far; what comes next follows from it, the seed and the turn."""

    def __init__(
        self,
        space: Space,
        costs: CostOf,
        evaluate: Evaluate,
        config: SearchConfig,
        seed: int,
        path: Path,
    ) -> None:
        self.space = space
        self.costs = costs
        self.evaluate = evaluate
        self.config = config
        self.seed = seed
        self.path = path
        ends = np.stack([space.encode(space.min()), space.encode(space.max())])
        smallest, largest = (int(macs) for macs in costs(ends).macs)
        low, high = config.budget.macs if config.budget else (smallest, largest)
        self.reach = (smallest, largest)
        if high < smallest or low > largest:
            raise self._nothing_between(low, high)
        self.ranges = bands(low or smallest, high, config.keep)
        share, more = divmod(config.population, config.keep)
        self.quota = np.maximum(share + (np.arange(config.keep) < more), 1)
        self.genes = ends[:0]
        self.accuracy = np.zeros(0)
        self.sizes: list[int] = []
        self.key = {
            "format": 1,
            "space": space.fingerprint,
            "config": config.model_dump(mode="json", exclude={"generations"}),
            "seed": seed,
        }

    @property
    def turn(self) -> int:
        """How many populations are evaluated; the first is not a generation."""
        return len(self.sizes)

    def resume(self) -> str:
        """Load the saved state where there is one; returns why a saved one was of no use."""
        saved, why_not = load_state(self.path, self.key)
        if saved is not None:
            self.sizes = saved["sizes"][: self.config.generations + 1]
            n = sum(self.sizes)
            self.genes = np.array(saved["genes"][:n], dtype=np.int64).reshape(n, -1)
            self.accuracy = np.array(saved["accuracy"][:n], dtype=np.float64)
        return why_not

    def next_population(self) -> np.ndarray:
        """Rows to evaluate next, none of them evaluated before; empty when there is nothing new."""
        rng = np.random.default_rng([self.seed, self.turn])
        if self.turn == 0:
            return self._first(rng)
        parents = self._parents()
        children = self.genes[:0]
        missing = self.quota
        for _ in range(_BREEDING_ROUNDS):
            bred = breed(
                self.space,
                parents,
                _CHILDREN_PER_PLACE * self.config.population,
                mutation=self.config.mutation,
                crossover=self.config.crossover,
                rng=rng,
            )
            fresh = new_rows(bred, np.concatenate((self.genes, children)))
            chosen = fresh[take_per_band(self._band(fresh), missing)]
            children = np.concatenate((children, chosen))
            missing = self.quota - self._count(children)
            if not missing.any():
                return children
        known = np.concatenate((self.genes, children))
        drawn = draw_into_bands(self.space, self.costs, self.ranges, missing, known, rng)
        return np.concatenate((children, drawn))

    def add(self, genes: np.ndarray, progress: Progress) -> None:
        """Evaluate a population and save the state."""
        specs = [self.space.decode(row) for row in genes]
        scores: list[float] = []
        for first in range(0, len(specs), _TOGETHER):
            group = specs[first : first + _TOGETHER]
            scores += [float(score) for score in self.evaluate(group)]
            progress.advance(len(group), f"best {max(scores):.1f} %")
        self._check(specs, scores)
        self.genes = np.concatenate((self.genes, genes))
        self.accuracy = np.concatenate((self.accuracy, scores))
        self.sizes.append(len(genes))
        state = {
            "sizes": self.sizes,
            "genes": self.genes.tolist(),
            "accuracy": self.accuracy.tolist(),
        }
        save_state(self.path, self.key, state)

    def result(self, resumed_from: int, restarted: str) -> SearchResult:
        """Read the best of each band and the front off everything evaluated."""
        macs = self.costs(self.genes).macs
        every = [
            Candidate(self.space.decode(row), int(cost), float(score))
            for row, cost, score in zip(self.genes, macs, self.accuracy, strict=True)
        ]
        best = take_per_band(
            self._band(self.genes)[ranked := self._ranked()], np.ones_like(self.quota)
        )
        kept = sorted((every[i] for i in ranked[best]), key=lambda candidate: candidate.macs)
        front = [every[i] for i in pareto_front(macs, self.accuracy)]
        return SearchResult(kept, every, front, self.turn - 1, resumed_from, restarted)

    def _first(self, rng: np.random.Generator) -> np.ndarray:
        drawn = draw_into_bands(self.space, self.costs, self.ranges, self.quota, self.genes, rng)
        empty = np.flatnonzero(self._count(drawn) == 0)
        if len(empty):
            raise self._nothing_between(*self.ranges[empty[0]])
        return drawn

    def _nothing_between(self, low: float, high: float) -> UserError:
        return UserError(
            f"No descendant was found between {low:.6g} and {high:.6g} MACs; this space reaches "
            f"from {self.reach[0]} to {self.reach[1]} MACs.",
            "Set descend.search.budget.macs inside that range, or lower descend.search.keep so "
            "that the bands grow wider.",
        )

    def _parents(self) -> np.ndarray:
        ranked = self._ranked()
        quarter = np.maximum(self.quota // 4, 2)
        return self.genes[ranked[take_per_band(self._band(self.genes)[ranked], quarter)]]

    def _ranked(self) -> np.ndarray:
        """Indices of everything evaluated: the most accurate first, then the cheapest."""
        return np.lexsort((self.costs(self.genes).macs, -self.accuracy))

    def _band(self, genes: np.ndarray) -> np.ndarray:
        macs = self.costs(genes).macs if len(genes) else np.zeros(0, dtype=np.int64)
        return band_of(macs, self.ranges)

    def _count(self, genes: np.ndarray) -> np.ndarray:
        return np.bincount(self._band(genes), minlength=len(self.ranges))

    @staticmethod
    def _check(specs: list[Spec], scores: list[float]) -> None:
        if len(scores) != len(specs):
            raise ValueError(f"{len(specs)} specs were evaluated, but {len(scores)} scores came")
        for spec, score in zip(specs, scores, strict=True):
            if not np.isfinite(score):
                raise CheckFailed(
                    f"The accuracy of descendant {spec.id} is {score}, not a number.",
                    "Check the supernet's training; its largest descendant may have diverged.",
                )
