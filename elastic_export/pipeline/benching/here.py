"""Measure bundles, ONNX files and descendants on this machine, all in one interleaved run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elastic_export.config.recipe import MeasureConfig
from elastic_export.engine.builder import device_name, device_sm
from elastic_export.measure.compare import choose_deployed
from elastic_export.measure.machine import describe_machine
from elastic_export.measure.marks import WRONG_LOGITS
from elastic_export.measure.protocol import Timing, measure_interleaved
from elastic_export.pipeline.benching.candidates import (
    ELSEWHERE,
    Candidate,
    LeftOut,
    candidates,
    engine_of,
    prepare,
)
from elastic_export.pipeline.benching.deployed import why_not_here
from elastic_export.pipeline.benching.names import RunnerName
from elastic_export.pipeline.benching.runners import Settings
from elastic_export.pipeline.subjects import Kind, Subject, labels, open_subject
from elastic_export.progress import Progress, no_progress

__all__ = ["bench_here"]

_USUAL: dict[Kind, RunnerName] = {"onnx": "onnxruntime", "descendant": "torch"}


def bench_here(
    paths: Sequence[Path],
    *,
    runners: Sequence[RunnerName] = (),
    precisions: Sequence[str] = (),
    threads: int = 1,
    fresh: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Measure everything that is given with every runner that takes it, turn by turn.

    Without ``runners`` a bundle runs on the runtime it was made for where this machine has that and
    its GPU, else in ONNX Runtime on the CPU; an ONNX file in ONNX Runtime, a descendant in torch.

    Args:
        paths: Bundle folders, ONNX files and descendants.
        runners: Names of runners; each is tried with each path.
        precisions: Only these.
        threads: Of the runners on the CPU.
        fresh: Build engines again that are there.
        progress: Told of builds, checks and measurements.

    Returns:
        ``machine``; ``models``, each with ``model``, ``runner``, ``precision``, ``runs`` (what the
        runner says of itself), ``latency``, ``logits``, ``top1``, ``macs`` (of one
        image; zeros are left out where the runner can), ``engine`` and ``marks``;
        ``chosen`` (bundle to the precision to deploy, and why), ``left_out`` and ``notes``.

    Raises:
        UserError: A path is nothing that runs, or nothing could be run.
        CheckFailed: A file of a bundle was changed, or nothing is left because a check failed.
    """
    subjects = [open_subject(path) for path in paths]
    settings = Settings(threads, fresh, progress)
    found: list[Candidate] = []
    left_out: list[LeftOut] = []
    notes: list[str] = []
    names = labels(subjects)
    for label, subject in zip(names, subjects, strict=True):
        why = "" if subject.bundle is None else why_not_here(subject.bundle)
        if why and not runners:
            notes.append(_not_its_device(label, subject, why))
        wanted = runners or (_usual(subject, not why),)
        some, none = candidates(label, subject, wanted, precisions, not why, settings)
        found, left_out = [*found, *some], [*left_out, *none]
    found, failed = prepare(found, settings)
    left_out += failed
    if not found:
        raise left_out[0].error
    timings = measure_interleaved(
        {one.key: one.call() for one in found},
        MeasureConfig(threads=threads),
        progress=progress,
    )
    gpu = {"name": device_name(), "sm": device_sm()}
    chosen, undecided = _choices(found, timings)
    return {
        "machine": {**describe_machine(), **({"gpu": gpu} if gpu["name"] else {})},
        "threads": threads,
        "models": [_told(one, timings[one.key]) for one in found],
        "chosen": chosen,
        "left_out": [one.to_json() for one in left_out],
        "notes": [*notes, *undecided, *_explained(left_out), *_remarks(found, runners)],
    }


def _usual(subject: Subject, here: bool) -> RunnerName:
    if subject.bundle is None:
        return _USUAL[subject.kind]
    return subject.bundle.manifest.runtime.name if here else "onnxruntime"


def _told(one: Candidate, timing: Timing) -> dict[str, Any]:
    assert one.made is not None
    bundle = one.subject.bundle
    return {
        "model": one.label,
        "path": str(one.subject.path),
        "kind": one.subject.kind,
        "target": None if bundle is None else bundle.manifest.target,
        "runner": one.runner,
        "precision": one.precision,
        "batch_size": one.subject.shape[0],
        "deployed": one.deployed,
        "runs": one.made.runner.describe(),
        "latency": asdict(timing),
        "logits": one.logits,
        "top1": None if bundle is None else bundle.top1(one.precision),
        "macs": None if bundle is None else bundle.macs(one.precision, skips=_skips(one)),
        "engine": engine_of(one),
        "marks": one.marks,
    }


def _skips(one: Candidate) -> bool:
    """Tell whether zeros of a 2:4 layer cost nothing: ONNX Runtime's own kernels compute them."""
    return one.deployed or "tensorrt" in one.runner


def _choices(
    found: Sequence[Candidate], timings: dict[str, Timing]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Choose for each bundle among what its own runtime measured, and say where none can be."""
    chosen: dict[str, dict[str, str]] = {}
    notes = []
    for label in dict.fromkeys(one.label for one in found if one.deployed):
        mine = [one for one in found if one.label == label and one.deployed]
        right = {one.precision: timings[one.key] for one in mine if WRONG_LOGITS not in one.marks}
        precision, why = choose_deployed(right, gpu=mine[0].on_gpu)
        if precision is None:
            notes.append(f"{label}: no precision is chosen, because {why}")
        else:
            chosen[label] = {"precision": precision, "why": why, "runner": mine[0].runner}
    return chosen, notes


def _not_its_device(label: str, subject: Subject, why: str) -> str:
    assert subject.bundle is not None
    return (
        f"{label} is for another device, {subject.bundle.manifest.target}, and {why}; it runs in "
        "ONNX Runtime on the CPU, and its speed here says nothing about that device."
    )


def _explained(left_out: Sequence[LeftOut]) -> list[str]:
    """Say why something is left out, once for all precisions that share the reason."""
    shared: dict[tuple[str, str, str], list[str]] = {}
    for one in left_out:
        key = (one.label, one.runner, f"{one.error.what} {one.error.fix}")
        shared.setdefault(key, []).append(one.precision)
    return [
        f"{' '.join([label, 'with', runner, *filter(None, [', '.join(precisions)])])} is left out: "
        f"{why}"
        for (label, runner, why), precisions in shared.items()
    ]


def _remarks(found: Sequence[Candidate], asked: Sequence[RunnerName]) -> list[str]:
    """What a reader of the figures has to know."""
    notes = []
    if asked and any(ELSEWHERE in one.marks for one in found):
        notes.append(
            "Figures marked elsewhere are not of the device and the runtime their bundle is for."
        )
    if any(one.on_gpu for one in found):
        notes.append(
            "Figures of a GPU hold the way of the image there and of the logits back; the clocks "
            "were left as they are."
        )
    modules = dict.fromkeys(one.label for one in found if one.subject.kind == "descendant")
    if modules:
        notes.append(
            f"torch has no INT8 form of {', '.join(modules)} here: INT8 is measured on a bundle."
        )
    return notes
