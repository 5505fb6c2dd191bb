"""The measure stage on boards: all descendants' bundles for one target in one visit over ssh."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_export.artifacts.digest import sha256_file
from elastic_export.artifacts.store import Artifact
from elastic_export.config.recipe import BoardConfig, Recipe
from elastic_export.config.result import DescendantResult
from elastic_export.config.targets import ResolvedTarget, load_target
from elastic_export.errors import ElasticExportError, UserError
from elastic_export.measure.board_match import Wanted, mismatches
from elastic_export.measure.remote import VisitOptions
from elastic_export.pipeline import bundling, remote
from elastic_export.pipeline.board_results import with_board
from elastic_export.pipeline.flow import Flow, PlanRow
from elastic_export.pipeline.remote import bench_on, probe_board, together
from elastic_export.pipeline.result import bundle_name
from elastic_export.pipeline.workshop import Workshop
from elastic_export.progress import Progress, no_progress

__all__ = ["Visit", "ask_boards", "measure_on_boards", "plan_visits", "visits_of"]

_STAGE = "measure"
_RESULT = "result.json"

Inputs = Callable[[ResolvedTarget], Sequence[Artifact | None]]
"""All artifacts that a target's bundles are made of."""


@dataclass(frozen=True)
class Visit:
    """A target and the board that it is measured on."""

    target: ResolvedTarget
    board: BoardConfig

    @property
    def name(self) -> str:
        """What the plan calls it: ``orin-nano-8gb@jp6.2:15W on user@orin``."""
        return f"{self.target.identity} on {self.board.board}"

    @property
    def ssh_config(self) -> Path | None:
        """Another configuration than the user's."""
        return None if self.board.ssh_config is None else Path(self.board.ssh_config)


def visits_of(recipe: Recipe, targets: Sequence[ResolvedTarget]) -> list[Visit]:
    """List the boards of a recipe, in the order of its targets.

    Raises:
        UserError: ``measure.on`` names what is no target of the recipe, or one target twice.
    """
    found: dict[str, BoardConfig] = {}
    known = {target.identity for target in targets}
    for name, board in recipe.measure.on.items():
        identity = load_target(name).identity
        if identity not in known:
            raise UserError(
                f"measure.on names a board for {identity}, which is no target of the recipe.",
                f"Add it to targets, or name one of them: {', '.join(sorted(known))}.",
            )
        if identity in found:
            raise UserError(
                f"measure.on names two boards for {identity}.",
                "Name one; another board of the same kind is another run.",
            )
        found[identity] = board
    return [Visit(target, found[target.identity]) for target in targets if target.identity in found]


def ask_boards(visits: Sequence[Visit], planned: Sequence[PlanRow], shop: Workshop) -> None:
    """Ask each board what it is, before hours are spent on files for another one.

    Args:
        visits: Where to go.
        planned: The plan; a board whose results are in the store is left alone.
        shop: Whose progress is told.

    Raises:
        UserError: A board cannot be reached, or is not what the target says; both are named.
    """
    kept = {row.detail for row in planned if row.stage == _STAGE and row.cached}
    for visit in visits:
        if visit.name in kept:
            continue
        destination = visit.board.board
        shop.progress.start(f"Asking {destination} what it is", 0)
        told = probe_board(destination, ssh_config=visit.ssh_config, python=visit.board.python)
        shop.progress.finish()
        other = mismatches(told, Wanted.of_target(visit.target))
        if other:
            raise UserError(
                f"{destination} has {' and '.join(other)}, and the recipe measures "
                f"{visit.target.identity} there.",
                f'Change the board, or the target: "elastic-export targets probe {destination}" '
                "names the one it is.",
            )


def plan_visits(
    flow: Flow, shop: Workshop, visits: Sequence[Visit], inputs: Inputs, names: Sequence[str]
) -> None:
    """Add the visits to the plan of a dry run; ``names`` are those of the descendants."""
    for visit in visits:
        _measure(flow, shop, visit, inputs(visit.target), names)


def measure_on_boards(
    flow: Flow,
    shop: Workshop,
    visits: Sequence[Visit],
    inputs: Inputs,
    descendants: Sequence[DescendantResult],
    out: Path,
) -> tuple[list[DescendantResult], list[ElasticExportError]]:
    """Measure on all boards at once; one that fails costs its own figures and no other's.

    Args:
        flow: The store and the plan.
        shop: The recipe and what is loaded.
        visits: Where to go.
        inputs: What each target's bundles are made of.
        descendants: What is known of each; their bundles lie below ``out``.
        out: The folder of the run.

    Returns:
        The descendants with what was measured, and what went wrong.
    """
    by_board: dict[str, list[Visit]] = {}
    for visit in visits:
        by_board.setdefault(visit.board.board, []).append(visit)
    stop = threading.Event()
    names = [one.name for one in descendants]

    def work(board: str, progress: Progress) -> list[dict[str, Any] | ElasticExportError | None]:
        """All visits of one board, one after the other."""
        told: list[dict[str, Any] | ElasticExportError | None] = []
        for visit in by_board[board]:
            folders = [
                out / bundle.folder
                for one in descendants
                for bundle in one.bundles
                if bundle.target == visit.target.identity
            ]
            try:
                artifacts = inputs(visit.target)
                made = _measure(flow, shop, visit, artifacts, names, folders, progress, stop)
                told.append(None if made is None else _read(made))
            except _IncompleteError as error:
                told.append(error.part)
            except ElasticExportError as error:
                told.append(error)
        return told

    done = together(list(by_board), work, shop.progress, stop) if visits else {}
    found, failures = list(descendants), list[ElasticExportError]()
    for board, parts in done.items():
        for visit, part in zip(by_board[board], parts, strict=True):
            if isinstance(part, ElasticExportError):
                failures.append(part)
            elif part is not None:  # else the run was to end before
                for index, one in enumerate(found):
                    name, settings = bundle_name(shop, one.name), shop.recipe.measure
                    found[index], wrong = with_board(one, name, visit.target, part, settings)
                    failures += wrong
    return found, failures


class _IncompleteError(Exception):
    """Some models could not be measured: good for this report, and not to be kept."""

    def __init__(self, part: dict[str, Any]) -> None:
        super().__init__("not all models were measured")
        self.part = part


def _read(measured: Artifact) -> dict[str, Any]:
    """What a visit left: ``board``, ``result``, ``chosen`` and ``notes``."""
    return dict(json.loads((measured.path / _RESULT).read_text()))


def _measure(
    flow: Flow,
    shop: Workshop,
    visit: Visit,
    inputs: Sequence[Artifact | None],
    names: Sequence[str],
    folders: Sequence[Path] = (),
    progress: Progress = no_progress,
    stop: threading.Event | None = None,
) -> Artifact | None:
    """The stage of one board.

    Raises:
        _IncompleteError: A model failed there. What is wrong may be mended (a full disk), so the
            next run has to go there again; the board keeps what is finished.
    """
    board, settings, target = visit.board, shop.recipe.measure, visit.target

    def make(folder: Path, work: Path) -> dict[str, Any]:
        options = VisitOptions(
            seconds=board.seconds,
            rounds=settings.min_samples,
            arguments=(
                f"--threads={settings.threads}",
                *([] if board.pin_clocks else ["--no-clocks"]),
                *(["--fresh"] if flow.fresh else []),
            ),
            python=board.python,
        )
        visited = bench_on(
            folders,
            [board.board],
            options,
            ssh_config=visit.ssh_config,
            patience=board.patience_s,
            progress=progress,
            stop=stop,
        )
        told = visited["boards"][board.board]
        if "error" in told:
            raise UserError(told["error"]["what"], told["error"]["fix"])
        part = {name: told[name] for name in ("result", "chosen", "notes")} | {"board": board.board}
        if any(model.get("error") for model in part["result"]["models"].values()):
            raise _IncompleteError(part)
        (folder / _RESULT).write_text(json.dumps(part, indent=1))
        return {"models": len(part["result"]["models"])}

    config = {
        # What the bundles are made of beside the inputs, and by which code.
        "target": [target.identity, target.target, target.software],
        "names": [bundle_name(shop, name) for name in names],
        "code": [sha256_file(Path(module.__file__ or "")) for module in (bundling, remote)],
        "board": board.board,
        "seconds": board.seconds,
        "pin_clocks": board.pin_clocks,
        "rounds": settings.min_samples,
        "threads": settings.threads,
    }
    return flow.do(_STAGE, visit.name, config=config, inputs=inputs, make=make)
