"""The main job: a recipe through all stages, and the plan of it."""

from __future__ import annotations

import json
import shutil
import time
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
from elastic_export.measure.machine import describe_machine
from elastic_export.pipeline.descend import Named, descend, make_supernet, wanted_specs
from elastic_export.pipeline.exporting import (
    DENSE,
    LEAN,
    TUNED,
    compile_engines,
    export,
    files_for,
)
from elastic_export.pipeline.flow import Flow, PlanRow
from elastic_export.pipeline.measuring import evaluate, measure
from elastic_export.pipeline.quantizing import check_placement, quantize, weights_change
from elastic_export.pipeline.result import Made, descendant_result
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
    """

    rows: list[PlanRow]
    result: BuildResult | None = None
    files: dict[str, Path] = field(default_factory=dict)


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
    with explained(out):
        # A folder that cannot be written is told now, not after the work.
        out.mkdir(parents=True, exist_ok=True)
    supernet, made, measured = _run(flow, shop, targets)
    if supernet is None or made is None:
        return Built(flow.rows)
    descendants = tuple(descendant_result(shop, one, targets, measured, out) for one in made)
    _remove_stale(out, {bundle.folder for one in descendants for bundle in one.bundles})
    result = BuildResult(
        name=recipe.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        recipe=recipe.model_dump(mode="json", by_alias=True),
        machine=describe_machine(),
        versions=provenance.versions(),
        dataset=_describe_data(shop),
        supernet=shop.supernet(supernet).describe() | {"how": _thinned(supernet.summary)},
        descendants=descendants,
        stages=tuple(row.to_dict() for row in flow.rows),
        wall_seconds=round(time.perf_counter() - began, 2),
    )
    return Built(flow.rows, result, write_report(result, out))


def plan(recipe: Recipe, store: Store) -> list[PlanRow]:
    """Tell what :func:`build` would do, and what of it is in the store already.

    Raises:
        UserError: The recipe asks for what cannot be done.
    """
    flow = Flow(store, dry=True)
    _run(flow, Workshop(recipe, no_progress), _targets(recipe))
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
    check_placement(recipe, targets)
    return targets


def _run(
    flow: Flow, shop: Workshop, targets: list[ResolvedTarget]
) -> tuple[Artifact | None, list[Made] | None, Artifact | None]:
    """All stages in order; the list is None where a stage was not made."""
    supernet = make_supernet(flow, shop)
    made: list[Made] = []
    exports: dict[Named, Artifact | None] = {}
    for named in wanted_specs(flow, shop, supernet):
        one = _descendant(flow, shop, targets, supernet, named)
        exports[named] = one["exported"]
        if all(one[part] is not None for part in ("dense", "sparse", "exported", "evaluated")):
            made.append(Made(named=named, **one))
    host = next((target for target in targets if target.target.kind == "host"), None)
    measured = None
    if host is not None:
        files = {precision: file.name for precision, file in files_for(shop, host).items()}
        measured = measure(flow, shop, exports, files)
    complete = len(made) == len(exports) and (host is None or measured is not None)
    return supernet, made if complete else None, measured


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
