"""Run stages through the store: what is there is taken, what is not is made, all of it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elastic_export.artifacts.store import Artifact, Store
from elastic_export.errors import UserError, did_you_mean

__all__ = ["STAGES", "Flow", "PlanRow"]

STAGES = (
    "train",
    "import",
    "search",
    "extract",
    "finetune",
    "fold",
    "sparsify",
    "quantize",
    "export",
    "compile",
    "evaluate",
    "measure",
)

# Raise a stage's number when its code gives another result for the same input.
_REVISIONS = dict.fromkeys(STAGES, 1)


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
        make: Callable[[Path, Path], dict[str, Any]],
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
        key = self.store.key(stage, _REVISIONS[stage], config, digests, ("elastic-export", *tools))
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
