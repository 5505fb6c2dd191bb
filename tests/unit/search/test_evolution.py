from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from elastic_export.config.recipe import Budget, SearchConfig
from elastic_export.errors import CheckFailed, UserError
from elastic_export.search import Candidate, SearchResult, bands, evolve
from elastic_export.space import Axis, Costs, Space, Spec

BLOCKS = 10
SPACE = Space(
    [Axis("depth", tuple(range(4, BLOCKS + 1)))]
    + [Axis(f"blocks.{i}.width", tuple(range(1, 9)), ("depth", i)) for i in range(BLOCKS)]
)
# How much each block's width is worth: what a search has to find out.
WORTH = np.random.default_rng(0).permutation(BLOCKS) + 1.0
CONFIG = SearchConfig(keep=4, population=24, generations=6)


def costs(genes: np.ndarray) -> Costs:
    depth = SPACE.values(genes, "depth")
    macs = np.zeros(len(genes), dtype=np.int64)
    for i in range(BLOCKS):
        macs += (depth > i) * 100 * SPACE.values(genes, f"blocks.{i}.width").astype(np.int64)
    return Costs(macs, macs, macs, macs)


class Accuracy:
    """A made-up accuracy with an optimum that only the search can find; counts its calls."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.asked: list[Spec] = []
        self.fail_after = fail_after

    def __call__(self, specs: Sequence[Spec]) -> list[float]:
        if len(self.asked) + len(specs) > self.fail_after:
            raise KeyboardInterrupt
        self.asked += specs
        return [self.of(spec) for spec in specs]

    @staticmethod
    def of(spec: Spec) -> float:
        widths = [spec.get(f"blocks.{i}.width", 0) for i in range(BLOCKS)]
        return float(sum(w * np.sqrt(int(x)) for w, x in zip(WORTH, widths, strict=True)))


def search(work: Path, accuracy: Accuracy, config: SearchConfig = CONFIG, seed: int = 0):  # type: ignore[no-untyped-def]
    return evolve(SPACE, costs, accuracy, config, seed=seed, work=work)


def same(a: SearchResult, b: SearchResult) -> bool:
    return (a.kept, a.evaluated, a.front) == (b.kept, b.evaluated, b.front)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return search(tmp_path_factory.mktemp("whole"), Accuracy())


def test_the_best_of_each_band_is_kept(whole: SearchResult) -> None:
    ends = costs(np.stack([SPACE.encode(SPACE.min()), SPACE.encode(SPACE.max())])).macs
    ranges = bands(*(int(m) for m in ends), 4)
    assert len(whole.kept) == 4
    assert len({c.spec for c in whole.kept}) == 4
    for i, (kept, (low, high)) in enumerate(zip(whole.kept, ranges, strict=True)):
        assert low <= kept.macs <= high
        rivals = [c for c in whole.evaluated if low <= c.macs < high or (i == 3 and c.macs == high)]
        assert kept.accuracy == max(c.accuracy for c in rivals)
        assert kept.macs == min(c.macs for c in rivals if c.accuracy == kept.accuracy)


def test_nothing_is_evaluated_twice_and_all_is_told(tmp_path: Path, whole: SearchResult) -> None:
    accuracy = Accuracy()
    result = search(tmp_path, accuracy)
    assert same(result, whole), "the same seed gives the same search"
    assert len(accuracy.asked) == len(set(accuracy.asked)) == 24 * 7
    assert [c.spec for c in result.evaluated] == accuracy.asked
    assert all(c == Candidate(c.spec, c.macs, Accuracy.of(c.spec)) for c in result.evaluated)
    genes = np.stack([SPACE.encode(c.spec) for c in result.evaluated])
    assert costs(genes).macs.tolist() == [c.macs for c in result.evaluated]
    assert (result.generations, result.resumed_from, result.restarted) == (6, 0, "")
    assert not same(search(tmp_path / "other", Accuracy(), seed=1), whole)


def test_evolution_beats_as_many_random_draws(tmp_path: Path) -> None:
    better = []
    for seed in range(5):
        found = search(tmp_path / f"e{seed}", Accuracy(), seed=seed).kept
        draws = CONFIG.model_copy(update={"population": 24 * 7, "generations": 0})
        drawn = search(tmp_path / f"r{seed}", Accuracy(), draws, seed=seed).kept
        # The last band's best is the largest descendant, which every first population holds.
        better += [a.accuracy - b.accuracy for a, b in zip(found[:3], drawn[:3], strict=True)]
    assert np.mean(np.array(better) > 0) > 0.8


def test_no_candidate_lies_outside_the_budget(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"budget": Budget(macs=(900, 2000)), "keep": 3})
    result = search(tmp_path, Accuracy(), config)
    assert {900 <= c.macs <= 2000 for c in result.evaluated} == {True}


def test_a_budget_from_zero_begins_at_the_smallest(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"budget": Budget(macs=(0, 1000)), "keep": 2})
    assert min(c.macs for c in search(tmp_path, Accuracy(), config).evaluated) == 400


@pytest.mark.parametrize("populations", range(1, 7))
def test_resumed_equals_uninterrupted(
    tmp_path: Path, whole: SearchResult, populations: int
) -> None:
    # The interruption comes in the middle of a population, which is then lost as a whole.
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Accuracy(fail_after=24 * populations + 20))
    accuracy = Accuracy()
    resumed = search(tmp_path, accuracy)
    assert same(resumed, whole)
    assert resumed.resumed_from == populations
    assert len(accuracy.asked) == 24 * (7 - populations)


def test_a_finished_search_evaluates_nothing_and_can_be_prolonged(
    tmp_path: Path, whole: SearchResult
) -> None:
    short = CONFIG.model_copy(update={"generations": 2})
    search(tmp_path, Accuracy(), short)
    accuracy = Accuracy()
    assert search(tmp_path, accuracy, short).generations == 2
    assert not accuracy.asked
    assert same(search(tmp_path, accuracy), whole)
    assert same(search(tmp_path, Accuracy(), short), search(tmp_path / "fresh", Accuracy(), short))


@pytest.mark.parametrize("damage", ["", "{", '{"key": 1}', "[]"])
def test_a_damaged_state_starts_anew(tmp_path: Path, whole: SearchResult, damage: str) -> None:
    (tmp_path / "search.json").write_text(damage)
    result = search(tmp_path, Accuracy())
    assert same(result, whole)
    assert "damaged" in result.restarted


def test_a_state_of_another_search_starts_anew(tmp_path: Path, whole: SearchResult) -> None:
    search(tmp_path, Accuracy(), seed=3)
    result = search(tmp_path, Accuracy())
    assert same(result, whole)
    assert "belongs to another" in result.restarted


def test_the_state_is_json_a_person_can_read(tmp_path: Path) -> None:
    search(tmp_path, Accuracy())
    state = json.loads((tmp_path / "search.json").read_text())["state"]
    assert state["sizes"] == [24] * 7
    assert len(state["genes"]) == len(state["accuracy"]) == 24 * 7
    assert [p.name for p in tmp_path.iterdir()] == ["search.json"]


@pytest.mark.parametrize("macs", [(2000, 90000), (10, 500), (9000, 10000), (0, 300)])
def test_an_empty_band_names_the_range_of_the_space(
    tmp_path: Path, macs: tuple[float, float]
) -> None:
    config = CONFIG.model_copy(update={"budget": Budget(macs=macs), "keep": 3})
    with pytest.raises(UserError, match="from 400 to 8000 MACs") as caught:
        search(tmp_path, Accuracy(), config)
    assert "descend.search.budget.macs" in caught.value.fix


def test_a_small_space_ends_early_and_finds_the_optimum(tmp_path: Path) -> None:
    space = Space([Axis("a", (1, 2, 3)), Axis("b", (1, 2, 3))])

    def cost(genes: np.ndarray) -> Costs:
        macs = (space.values(genes, "a") * 10 + space.values(genes, "b")).astype(np.int64)
        return Costs(macs, macs, macs, macs)

    def evaluate(specs: Sequence[Spec]) -> list[float]:
        return [float(int(s["b"])) for s in specs]

    config = SearchConfig(keep=2, population=4, generations=50)
    result = evolve(space, cost, evaluate, config, seed=0, work=tmp_path)
    assert len(result.evaluated) == 9
    assert result.generations < 50
    assert [c.macs for c in result.kept] == [13, 23]
    assert [c.macs for c in result.front] == [11, 12, 13]


def test_an_accuracy_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="not a number"):
        evolve(SPACE, costs, lambda s: [float("nan")] * len(s), CONFIG, seed=0, work=tmp_path)


class Steps:
    def __init__(self) -> None:
        self.said: list[object] = []

    def start(self, label: str, total: int) -> None:
        self.said.append((label, total))

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.said.append(steps)

    def finish(self) -> None:
        self.said.append("end")


def test_progress_counts_evaluations(tmp_path: Path) -> None:
    steps = Steps()
    evolve(SPACE, costs, Accuracy(), CONFIG, seed=0, work=tmp_path, progress=steps)
    assert steps.said[0] == ("search", 168)
    assert sum(s for s in steps.said if isinstance(s, int)) == 168
    assert steps.said[-1] == "end"
