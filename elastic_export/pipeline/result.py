"""Gather what the stages found into one result, and have a bundle written for each target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_export.artifacts.store import Artifact
from elastic_export.config.dla import MOST_LOADABLES
from elastic_export.config.result import BundleResult, Cost, DescendantResult, Latency
from elastic_export.config.targets import ResolvedTarget
from elastic_export.elastic import Descendant
from elastic_export.engine import tensorrt_rtx
from elastic_export.pipeline.bundling import Content, bundle, executed_macs
from elastic_export.pipeline.descend import Named
from elastic_export.pipeline.estimating import estimate_bundle
from elastic_export.pipeline.exporting import CHECKS, DENSE, LEAN, File, files_for
from elastic_export.pipeline.measuring import accuracies, latencies, samples
from elastic_export.pipeline.workshop import Workshop

__all__ = [
    "NOT_BUILT",
    "Made",
    "bundle_name",
    "descendant_result",
    "target_notes",
    "with_estimates",
]

NOT_BUILT = (
    "No engine was built: run on_device.py, or a build_engine script, of the bundle on the device."
)

_DLA_NOTE = (
    "The GPU runs what the DLA does not: attention (products of two activations), LayerNorm and "
    "GELU among others. A transformer is cut into many parts by that, of which a core holds "
    f"{MOST_LOADABLES} at once, so do not expect it to be faster there; convolutional networks are "
    "what a DLA is for. The build's log and on_device.py tell how many layers run where."
)


@dataclass(frozen=True)
class Made:
    """All artifacts of one descendant; ``engines`` by the target's identity."""

    named: Named
    dense: Artifact
    sparse: Artifact
    quantized: Artifact | None
    exported: Artifact
    evaluated: Artifact
    engines: dict[str, Artifact]


def bundle_name(shop: Workshop, descendant: str) -> str:
    """What the bundles of a descendant are called, also in a board's results."""
    return f"{shop.recipe.name} {descendant}"


def descendant_result(
    shop: Workshop,
    made: Made,
    targets: list[ResolvedTarget],
    measured: dict[str, Artifact],
    out: Path,
) -> DescendantResult:
    """Write one descendant's bundles below ``out`` and tell everything about it.

    Args:
        shop: The recipe and what is loaded.
        made: The descendant's artifacts.
        targets: One bundle is written for each.
        measured: What was measured on this machine, by the identity of the target that it is.
        out: Where bundles go, as ``bundles/NAME/TARGET``.
    """
    one = shop.descendant(made.sparse)
    cost = Cost.model_validate(made.exported.summary["cost"])
    found = accuracies(shop, made.evaluated)
    stations = {"fp32": File(DENSE, "fp32", "plain")}
    if shop.recipe.sparsify is not None:
        stations[shop.recipe.sparsify.pattern] = File(LEAN, "fp32", "plain")
    return DescendantResult(
        name=made.named.name,
        spec_id=one.spec_id,
        spec=one.genes,
        cost=cost,
        accuracy={station: found[file.name] for station, file in stations.items()},
        search_accuracy=made.named.search_accuracy,
        quantization=made.quantized.summary if made.quantized is not None else {},
        bundles=tuple(
            _bundle(shop, made, one, target, cost, measured.get(target.identity), out)
            for target in targets
        ),
    )


def with_estimates(
    descendants: Sequence[DescendantResult], targets: Sequence[ResolvedTarget], out: Path
) -> list[DescendantResult]:
    """Estimate what was measured nowhere, once boards have taught what they could."""
    by_identity = {target.identity: target for target in targets}

    def estimated(bundle: BundleResult) -> BundleResult:
        found = estimate_bundle(out / bundle.folder, by_identity[bundle.target])
        left = {p: one for p, one in found.items() if p not in bundle.latency}
        return bundle.model_copy(update={"estimate": left})

    return [
        one.model_copy(update={"bundles": tuple(map(estimated, one.bundles))})
        for one in descendants
    ]


def target_notes(
    target: ResolvedTarget, reports: dict[str, Any], files: Mapping[str, File]
) -> list[str]:
    """Say in one line what was not done for a target, or what is not known."""
    runtime = target.software.runtime
    if "fp16" in files and files["fp16"].precision == "fp32":
        return [
            "model.fp16.onnx holds FP32 values: this release chooses FP16 itself when the "
            "build_engine script asks it to, and what it rounds is not known here.",
            *target_notes(target, reports, {}),
        ]
    if runtime == "tensorrt-rtx" and not reports:
        return ["No engine was built: pip install 'elastic-export[rtx]' and build again."]
    if runtime == "tensorrt-rtx":
        return [
            f"The engines are for TensorRT-RTX {tensorrt_rtx.available()}, not for TensorRT. Its "
            "builder accepted them; they were not run, so their kernels are not known."
        ]
    if runtime == "tensorrt":
        return [NOT_BUILT] if target.dla is None else [NOT_BUILT, _DLA_NOTE]
    return []


def _for_target(checks: dict[str, Any], target: ResolvedTarget) -> dict[str, Any]:
    """The checks of a file that several targets may share, with what this one's parser takes."""
    return {**checks, "lint": checks["lint"][target.identity]}


def _bundle(
    shop: Workshop,
    made: Made,
    one: Descendant,
    target: ResolvedTarget,
    cost: Cost,
    measured: Artifact | None,
    out: Path,
) -> BundleResult:
    files, host = files_for(shop, target), target.target.kind == "host"
    built = made.engines.get(target.identity)
    reports: dict[str, Any] = built.summary if built is not None else {}
    checks = json.loads((made.exported.path / CHECKS).read_text())
    found = accuracies(shop, made.evaluated, target)
    content = Content(
        paths={p: made.exported.path / file.name for p, file in files.items()},
        files=files,
        samples=samples(made.evaluated),
        checks={p: _for_target(checks[file.name], target) for p, file in files.items()},
        accuracy={p: found[file.name] for p, file in files.items()},
        engines={p: built.path / f"{p}.engine" for p in reports} if built is not None else {},
        reports=reports,
        sparse=frozenset(p for p, f in files.items() if one.patterns and f.weights != DENSE),
    )
    speed: dict[str, Latency] = {}
    chosen, because = None, "The device was not measured."
    if measured is not None:
        speed, chosen, because = latencies(measured, made.named.name)
    notes = target_notes(target, reports, files)
    if built is None and made.sparse is not made.dense and "int8" not in files and host:
        notes.append("No file here holds the 2:4 weights: on a CPU they would save no time.")
    folder = Path("bundles") / made.named.name / target.identity.replace(":", "-")
    models = bundle(
        out / folder,
        bundle_name(shop, made.named.name),
        one,
        target,
        shop.data_of(one.genes).transform,
        content,
        chosen=chosen,
        notes=notes,
    )
    return BundleResult(
        target=target.identity,
        folder=folder.as_posix(),
        files=models,
        bytes={p: path.stat().st_size for p, path in content.paths.items()},
        accuracy=dict(content.accuracy),
        latency=speed,
        executed_macs=executed_macs(one, target, content),
        hardware_macs=cost.hardware_macs if target.target.sparse_2_4 else cost.macs,
        chosen=chosen,
        chosen_because=because,
        engines=reports,
        checks=dict(content.checks),
        notes=tuple(notes),
    )
