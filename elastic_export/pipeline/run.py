"""The main job: a recipe through all stages, and the plan of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from elastic_export.artifacts import provenance
from elastic_export.artifacts.disk import explained
from elastic_export.artifacts.store import Artifact, Store
from elastic_export.config.recipe import Recipe
from elastic_export.config.result import BuildResult
from elastic_export.config.targets import ResolvedTarget, check_target, load_target
from elastic_export.engine.bundle import MANIFEST
from elastic_export.engine.trtexec import timing_arguments
from elastic_export.errors import ElasticExportError
from elastic_export.measure.machine import describe_machine
from elastic_export.pipeline.boards import (
    Visit,
    ask_boards,
    measure_on_boards,
    plan_visits,
    visits_of,
)
from elastic_export.pipeline.descend import Named, descend, make_supernet, wanted_specs
from elastic_export.pipeline.estimating import basis_for
from elastic_export.pipeline.exporting import (
    DENSE,
    LEAN,
    TUNED,
    compile_engines,
    export,
    files_for,
)
from elastic_export.pipeline.flow import STAGES, Flow, PlanRow
from elastic_export.pipeline.measuring import evaluate, measure
from elastic_export.pipeline.quantizing import check_placement, quantize, weights_change
from elastic_export.pipeline.result import Made, descendant_result, with_estimates
from elastic_export.pipeline.workshop import Workshop
from elastic_export.progress import Progress, no_progress
from elastic_export.report.write import write_report

__all__ = ["Built", "build", "plan"]


@dataclass
class Built:
    """What a run did.

    Attributes:
        rows: The stages, in order, with what was cached.
        result: Everything measured; None where ``only`` stopped the run early.
        files: The report's files by kind.
        failures: What went wrong on boards; the report holds all the rest.
    """

    rows: list[PlanRow]
    result: BuildResult | None = None
    files: dict[str, Path] = field(default_factory=dict)
    failures: list[ElasticExportError] = field(default_factory=list)


def build(
    recipe: Recipe,
    *,
    out: Path,
    store: Store,
    progress: Progress = no_progress,
    fresh: bool = False,
    only: str | None = None,
) -> Built:
    """Run a recipe; finished stages come from the store.

    Args:
        recipe: What to do.
        out: Where bundles and the report go.
        store: Where artifacts lie.
        progress: Told of everything that takes time.
        fresh: Do not take finished stages from the store; with ``only``, just that one.
        only: Stop after this stage and write no report.

    Raises:
        UserError: The recipe asks for what the input, the targets or this machine cannot do.
        CheckFailed: A stage's post-condition does not hold.
    """
    began = time.perf_counter()
    flow = Flow(store, fresh=fresh, only=only)
    shop = Workshop(recipe, progress)
    targets = _targets(recipe)
    visits = visits_of(recipe, targets)
    with explained(out):
        # A folder that cannot be written is told now, not after the work.
        out.mkdir(parents=True, exist_ok=True)
    if visits and only in (None, STAGES[-1]):
        planned = [] if fresh else _planned(store, shop, targets, visits)
        ask_boards(visits, planned, shop)
    run = _run(flow, shop, targets, visits)
    if run.supernet is None or not run.complete or only not in (None, STAGES[-1]):
        return Built(flow.rows)
    supernet = run.supernet
    descendants = [descendant_result(shop, one, targets, run.measured, out) for one in run.made]
    _remove_stale(out, {bundle.folder for one in descendants for bundle in one.bundles})
    descendants, failures = measure_on_boards(flow, shop, visits, run.inputs, descendants, out)
    descendants = with_estimates(descendants, targets, out)
    result = BuildResult(
        name=recipe.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        recipe=recipe.model_dump(mode="json", by_alias=True),
        machine=describe_machine(),
        versions=provenance.versions(),
        dataset=_describe_data(shop),
        supernet=shop.supernet(supernet).describe() | {"how": _thinned(supernet.summary)},
        descendants=tuple(descendants),
        stages=tuple(row.to_dict() for row in flow.rows),
        wall_seconds=round(time.perf_counter() - began, 2),
    )
    return Built(flow.rows, result, write_report(result, out), failures)


def plan(recipe: Recipe, store: Store) -> list[PlanRow]:
    """Tell what :func:`build` would do, and what of it is in the store already.

    Raises:
        UserError: The recipe asks for what cannot be done.
    """
    targets = _targets(recipe)
    return _planned(store, Workshop(recipe, no_progress), targets, visits_of(recipe, targets))


def _planned(
    store: Store, shop: Workshop, targets: list[ResolvedTarget], visits: Sequence[Visit]
) -> list[PlanRow]:
    flow = Flow(store, dry=True)
    run = _run(flow, shop, targets, visits)
    plan_visits(flow, shop, visits, run.inputs, [named.name for named in run.parts])
    return flow.rows


def _targets(recipe: Recipe) -> list[ResolvedTarget]:
    """Resolve and check all targets before any long work."""
    # Two names may stand for one target.
    found = map(load_target, recipe.targets)
    targets = list({target.identity: target for target in found}.values())
    for target in targets:
        check_target(recipe, target)
        if target.software.runtime == "tensorrt":
            timing_arguments(target.software.runtime_version)  # an unknown release is told now
        basis_for(target)  # and so is a damaged fit
    check_placement(recipe, targets)
    return targets


@dataclass(frozen=True)
class _Run:
    """All that the stages made, but for the boards.

    Attributes:
        supernet: None where it was not made.
        parts: Each descendant's artifacts by what they are; None where one was not made.
        measured: What was measured on this machine, by the identity of the target that it is.
        complete: Nothing is missing.
    """

    supernet: Artifact | None
    parts: dict[Named, dict[str, Any]]
    measured: dict[str, Artifact]
    complete: bool

    @property
    def made(self) -> list[Made]:
        """The artifacts of all descendants, of a complete run."""
        return [Made(named=named, **parts) for named, parts in self.parts.items()]

    def inputs(self, target: ResolvedTarget) -> list[Artifact | None]:
        """All that a target's bundles are made of."""
        return [
            artifact
            for parts in self.parts.values()
            for artifact in (
                parts["exported"],
                parts["evaluated"],
                *(engine for name, engine in parts["engines"].items() if name == target.identity),
            )
        ]


def _run(
    flow: Flow, shop: Workshop, targets: list[ResolvedTarget], visits: Sequence[Visit]
) -> _Run:
    """All stages in order, but for the boards."""
    supernet = make_supernet(flow, shop)
    parts = {
        named: _descendant(flow, shop, targets, supernet, named)
        for named in wanted_specs(flow, shop, supernet)
    }
    away = {visit.target.identity for visit in visits}
    host = next((t for t in targets if t.target.kind == "host" and t.identity not in away), None)
    measured = None
    if host is not None:
        files = {precision: file.name for precision, file in files_for(shop, host).items()}
        exports = {named: each["exported"] for named, each in parts.items()}
        measured = measure(flow, shop, exports, files)
    complete = (host is None or measured is not None) and all(
        each[name] is not None
        for each in parts.values()
        for name in ("dense", "sparse", "exported", "evaluated")
    )
    here = {} if host is None or measured is None else {host.identity: measured}
    return _Run(supernet, parts, here, complete)


def _descendant(
    flow: Flow,
    shop: Workshop,
    targets: list[ResolvedTarget],
    supernet: Artifact | None,
    named: Named,
) -> dict[str, Any]:
    dense, sparse = descend(flow, shop, supernet, named)
    record = quantize(flow, shop, named.name, sparse, targets)
    sources = {DENSE: dense} | ({LEAN: sparse} if shop.recipe.sparsify is not None else {})
    if weights_change(shop.recipe):
        sources[TUNED] = record
    exported = export(flow, shop, named.name, sources, record, targets)
    by_sm = {
        target.target.sm: compile_engines(flow, shop, named.name, exported, target)
        for target in {target.target.sm: target for target in targets if _is_built(target)}.values()
    }
    engines = {t.identity: by_sm.get(t.target.sm) for t in targets if _is_built(t)}
    return {
        "dense": dense,
        "sparse": sparse,
        "quantized": record,
        "exported": exported,
        "evaluated": evaluate(flow, shop, named, exported),
        "engines": {name: engine for name, engine in engines.items() if engine is not None},
    }


def _describe_data(shop: Workshop) -> dict[str, Any]:
    data = shop.data
    return {
        "name": data.name,
        "classes": data.num_classes,
        "images": {split.name: len(split) for split in (data.train, data.search, data.test)},
        "digests": shop.data_digests,
        "transform": json.loads(data.transform.model_dump_json()),
    }


def _is_built(target: ResolvedTarget) -> bool:
    return target.software.runtime == "tensorrt-rtx"


def _remove_stale(out: Path, kept: set[str]) -> None:
    """Remove bundles of an earlier run that this one does not report, lest one be shipped."""
    for manifest in out.glob(f"bundles/*/*/{MANIFEST}"):
        folder = manifest.parent
        if folder.relative_to(out).as_posix() not in kept:
            shutil.rmtree(folder)
            with suppress(OSError):  # other targets of the descendant may still be there
                folder.parent.rmdir()


def _thinned(summary: dict[str, Any]) -> dict[str, Any]:
    """Keep about a hundred points of a training's history."""
    history = summary.get("history", [])
    step = len(history) // 100 + 1
    return {**summary, "history": history[::step]} if history else summary
