"""What is measured: each path with each runner in each precision, made ready and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from elastic_export.errors import CheckFailed, ElasticExportError, UserError
from elastic_export.measure.marks import WRONG_LOGITS
from elastic_export.pipeline.benching.logits import compared
from elastic_export.pipeline.benching.names import RunnerName
from elastic_export.pipeline.benching.runners import Made, Make, Settings, makers
from elastic_export.pipeline.subjects import Subject

__all__ = ["ON_CPU", "Candidate", "LeftOut", "candidates", "prepare"]

ON_CPU: frozenset[RunnerName] = frozenset({"onnxruntime", "torch"})
ELSEWHERE = "elsewhere"


@dataclass
class Candidate:
    """One path, runner and precision.

    Attributes:
        label: The path's name.
        subject: What lies there.
        runner: The runner's name.
        precision: What it is run in.
        make: Makes the runner.
        deployed: It is what the bundle's target runs, on such a machine.
        made: The runner, once it is ready.
        logits: What the comparison with the bundle's sample found.
        marks: What makes its figure doubtful.
    """

    label: str
    subject: Subject
    runner: RunnerName
    precision: str
    make: Make
    deployed: bool
    made: Made | None = None
    logits: dict[str, Any] | None = None
    marks: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Tell it from all others."""
        return f"{self.label} {self.runner} {self.precision}"

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU runs it."""
        return self.runner not in ON_CPU

    def call(self) -> partial[Any]:
        """Return one inference on values that are the same for everybody."""
        assert self.made is not None
        x = np.random.default_rng(0).standard_normal(self.subject.shape)
        return partial(self.made.runner.run, x.astype(self.subject.dtype))


@dataclass(frozen=True)
class LeftOut:
    """What could not be run, and why; ``precision`` is empty where it concerns all."""

    label: str
    runner: RunnerName
    precision: str
    error: ElasticExportError

    def to_json(self) -> dict[str, str]:
        """Return plain values."""
        found = {name: str(getattr(self, name)) for name in ("label", "runner", "precision")}
        kind = "check" if isinstance(self.error, CheckFailed) else "user"
        found["model"] = found.pop("label")
        return {**found, "kind": kind, "what": self.error.what, "fix": self.error.fix}


def candidates(
    label: str,
    subject: Subject,
    runners: Sequence[RunnerName],
    precisions: Sequence[str],
    here: bool,
    settings: Settings,
) -> tuple[list[Candidate], list[LeftOut]]:
    """List the candidates of one path; nothing is loaded or built yet.

    Args:
        label: The path's name.
        subject: What lies there.
        runners: Names of runners.
        precisions: Only these, where any are given.
        here: This machine runs the bundle as its target does.
        settings: How runners are made.
    """
    found: list[Candidate] = []
    left_out: list[LeftOut] = []
    for name in runners:
        try:
            offered = makers(name, subject, settings)
            wanted = [p for p in offered if not precisions or p in precisions]
            if not wanted:
                raise UserError(
                    f"{label} has no {' or '.join(precisions)} with {name}.",
                    f"It has: {', '.join(offered)}.",
                )
        except UserError as error:
            left_out.append(LeftOut(label, name, "", error))
            continue
        bundle = subject.bundle
        deployed = bundle is not None and here and bundle.manifest.runtime.name == name
        marks = [] if bundle is None or deployed else [ELSEWHERE]
        found += [
            Candidate(label, subject, name, p, offered[p], deployed, marks=list(marks))
            for p in wanted
        ]
    return found, left_out


def prepare(
    found: Sequence[Candidate], settings: Settings
) -> tuple[list[Candidate], list[LeftOut]]:
    """Make every runner, compare its logits with the sample, and run it once.

    Returns:
        Those that can be measured, and those that cannot.
    """
    ready: list[Candidate] = []
    left_out: list[LeftOut] = []
    progress = settings.progress
    progress.start("Preparing and checking", len(found))
    for one in found:
        try:
            one.made = one.make()
            if one.subject.bundle is not None:
                one.logits = compared(
                    one.subject.bundle,
                    one.precision,
                    one.made.runner,
                    one.subject.shape[0],
                    gpu=one.on_gpu,
                )
            one.call()()
        except ElasticExportError as error:
            one.made = None
            left_out.append(LeftOut(one.label, one.runner, one.precision, error))
        else:
            if one.logits is not None and not one.logits["ok"]:
                one.marks.append(WRONG_LOGITS)
            ready.append(one)
        progress.advance(note=one.key)
    progress.finish()
    return ready, left_out


def engine_of(one: Candidate) -> dict[str, Any] | None:
    """Say which engine ran, in plain values."""
    engine = None if one.made is None else one.made.engine
    if engine is None:
        return None
    return {"file": str(engine.path), "reused": engine.reused, **engine.report.to_json()}
