"""The flow: what is there is taken, what follows from a change is redone, nothing else."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from elastic_export.artifacts.digest import sha256_sources
from elastic_export.artifacts.store import Artifact, Store
from elastic_export.errors import UserError
from elastic_export.pipeline.flow import Flow, _code_of
from elastic_export.pipeline.quantizing import check_placement


class Run:
    """Two stages, the second reading the first; counts what is made."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.made: list[str] = []

    def go(
        self, first: Any = 1, second: Any = 1, **options: Any
    ) -> tuple[Flow, Artifact | None, Artifact | None]:
        flow = Flow(self.store, **options)

        def make(stage: str, text: str) -> Any:
            def write(folder: Path, work: Path) -> dict[str, Any]:
                self.made.append(stage)
                (folder / "x").write_text(text)
                return {"said": text}

            return write

        a = flow.do("train", "a", config=first, inputs=[], make=make("train", f"a{first}"))
        b = flow.do("search", "b", config=second, inputs=[a], make=make("search", "b"))
        return flow, a, b


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Store(tmp_path))


def test_a_second_run_makes_nothing(run: Run) -> None:
    run.go()
    flow, a, _ = run.go()
    assert run.made == ["train", "search"]
    assert [row.cached for row in flow.rows] == [True, True]
    assert a is not None
    assert a.summary == {"said": "a1"}


def test_a_change_redoes_what_follows_and_nothing_before(run: Run) -> None:
    run.go()
    run.go(second=2)
    assert run.made == ["train", "search", "search"]
    run.go(first=2)
    assert run.made[3:] == ["train", "search"]


def test_a_dry_run_only_looks(run: Run) -> None:
    flow, a, b = run.go(dry=True)
    assert (a, b, run.made) == (None, None, [])
    assert [row.cached for row in flow.rows] == [False, None]
    run.go()
    flow, *_ = run.go(dry=True)
    assert [row.cached for row in flow.rows] == [True, True]


def test_only_stops_after_its_stage(run: Run) -> None:
    _, a, b = run.go(only="train")
    assert run.made == ["train"]
    assert a is not None
    assert b is None


def test_fresh_makes_everything_again_or_only_one_stage(run: Run) -> None:
    run.go()
    run.go(fresh=True)
    assert run.made[2:] == ["train", "search"]
    run.go(fresh=True, only="search")
    assert run.made[4:] == ["search"]


def test_an_unknown_stage_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match=r'Did you mean "quantize"\?'):
        run.go(only="quantise")


def test_work_survives_a_failure_and_is_gone_after_success(run: Run, tmp_path: Path) -> None:
    flow = Flow(run.store)
    tries: list[bool] = []

    def make(folder: Path, work: Path) -> dict[str, Any]:
        tries.append((work / "state").exists())
        (work / "state").write_text("half")
        if len(tries) == 1:
            raise RuntimeError("the power went")
        return {}

    with pytest.raises(RuntimeError, match="power"):
        flow.do("train", "t", config=1, inputs=[], make=make)
    assert flow.do("train", "t", config=1, inputs=[], make=make) is not None
    assert tries == [False, True]
    assert not list(tmp_path.rglob("state"))


def test_a_stage_of_several_files_is_known_by_all_of_them() -> None:
    folder = Path(inspect.getfile(check_placement)).parent
    assert len(list(folder.glob("*.py"))) > 1
    assert _code_of("quantize", check_placement).endswith(sha256_sources(folder)[:16])
