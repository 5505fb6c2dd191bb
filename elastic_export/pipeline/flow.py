"""Run stages through the store: what is there is taken, what is not is made, all of it is told."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import elastic_export
from elastic_export.artifacts.digest import sha256_file, sha256_json, sha256_sources
from elastic_export.artifacts.store import Artifact, Store
from elastic_export.errors import UserError, did_you_mean

__all__ = ["STAGES", "Flow", "PlanRow"]

# Stage to the room whose code decides its result; the rooms below it decide with it.
_ROOM_OF = {
    "train": "train",
    "import": "checkpoints",
    "search": "search",
    "extract": "checkpoints",
    "finetune": "train",
    "fold": "checkpoints",
    "sparsify": "train",
    "quantize": "measure",
    "export": "export",
    "compile": "engine",
    "evaluate": "engine",
    "measure": "measure",
}
STAGES = tuple(_ROOM_OF)

# From the bottom up. Settings are part of every key by themselves.
_ROOMS = (
    "space",
    "data",
    "sparsity",
    "elastic",
    "families",
    "checkpoints",
    "train",
    "search",
    "quantize",
    "export",
    "engine",
    "measure",
)


Make = Callable[[Path, Path], dict[str, Any]]


@dataclass(frozen=True)
class PlanRow:
    """One stage of a run: ``cached`` is None where that depends on a stage not yet run."""

    stage: str
    detail: str
    key: str | None
    cached: bool | None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Flow:
    """The store, what was done, and how far to go.

    Args:
        store: Where artifacts lie.
        fresh: Make artifacts again even if they are there; with ``only``, those of that stage.
        only: Go no further than this stage.
        dry: Make nothing, only look.

    Raises:
        UserError: ``only`` names no stage.
    """

    def __init__(
        self, store: Store, *, fresh: bool = False, only: str | None = None, dry: bool = False
    ) -> None:
        if only is not None and only not in STAGES:
            raise UserError(f'There is no stage "{only}".', did_you_mean(only, list(STAGES)))
        self.store = store
        self.fresh = fresh
        self.only = only
        self.dry = dry
        self.rows: list[PlanRow] = []

    def do(
        self,
        stage: str,
        detail: str,
        *,
        config: object,
        inputs: Sequence[Artifact | None],
        make: Make,
        tools: Sequence[str] = (),
    ) -> Artifact | None:
        """Return a stage's artifact, made by ``make(folder, work)`` where it is not there yet.

        Args:
            stage: One of :data:`STAGES`.
            detail: What this run of the stage is about, such as a descendant's name.
            config: Everything beside the inputs that the result depends on.
            inputs: Artifacts read; None where one has not been made, as in a dry run.
            make: Fills ``folder``; ``work`` survives an interruption. Returns the summary.
            tools: Distributions whose version the result depends on.

        Returns:
            The artifact, or None where nothing was to be made.
        """
        if any(artifact is None for artifact in inputs) or self._beyond(stage):
            self.rows.append(PlanRow(stage, detail, None, None))
            return None
        digests = [artifact.digest for artifact in inputs if artifact is not None]
        key = self.store.key(stage, _code_of(stage, make), config, digests, tools)
        fresh = self.fresh and self.only in (None, stage)
        found = None if fresh else self.store.get(key)
        if found is not None or self.dry:
            self.rows.append(PlanRow(stage, detail, key, found is not None))
            return found
        began = time.perf_counter()
        artifact = self.store.build(
            key, stage, lambda folder: make(folder, self.store.work(key)), fresh=fresh
        )
        seconds = round(time.perf_counter() - began, 2)
        self.rows.append(PlanRow(stage, detail, key, False, seconds))
        return artifact

    def _beyond(self, stage: str) -> bool:
        return self.only is not None and STAGES.index(stage) > STAGES.index(self.only)


@cache
def _digest_of_rooms(rooms: tuple[str, ...]) -> str:
    package = Path(elastic_export.__file__).parent
    return sha256_json({room: sha256_sources(package / room) for room in rooms})


def _code_of(stage: str, make: Make) -> str:
    """Identify the code that decides a stage's result, so that no stale result is ever taken."""
    below = _ROOMS[: _ROOMS.index(_ROOM_OF[stage]) + 1]
    source = Path(inspect.getfile(make))
    # A stage of several files is a folder of its own, and all of it counts.
    alone = source.parent.parent != Path(__file__).parent
    own = sha256_file(source) if alone else sha256_sources(source.parent)
    return f"{_digest_of_rooms(below)[:16]}-{own[:16]}"
