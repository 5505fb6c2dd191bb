"""Speed-guided placement of a descendant: which files race, and what times them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from elastic_export.config.recipe import MeasureConfig
from elastic_export.engine.runners import OrtRunner
from elastic_export.measure.compare import compare
from elastic_export.measure.protocol import Timing, measure_interleaved
from elastic_export.pipeline.quantizing.trials import Trials
from elastic_export.progress import Progress
from elastic_export.quantize.record import QuantizationRecord
from elastic_export.quantize.speed import Placement, groups_of, place

__all__ = ["Measure", "place_by_speed", "timed_here"]

Measure = Callable[[Mapping[str, Path]], Mapping[str, Timing]]
"""Times ONNX files in one interleaved run; here with ONNX Runtime, on a board with its own."""

_REASON = "It was measured to be faster in floating point."


def timed_here(x: np.ndarray, settings: MeasureConfig) -> Measure:
    """Time files in ONNX Runtime on this machine.

    Args:
        x: The batch that every file takes.
        settings: Threads, samples, warm-up.
    """

    def measure(files: Mapping[str, Path]) -> Mapping[str, Timing]:
        runners = {name: OrtRunner(path, threads=settings.threads) for name, path in files.items()}
        runs = {name: partial(runner.run, x) for name, runner in runners.items()}
        return measure_interleaved(runs, settings)

    return measure


def place_by_speed(
    record: QuantizationRecord,
    layers: list[str],
    trials: Trials,
    measure: Measure,
    *,
    state: Path,
    progress: Progress,
) -> tuple[QuantizationRecord, Placement]:
    """Send groups of layers back to floating point where the measured runner is faster so.

    Args:
        record: As the guard left it.
        layers: Those that are INT8 in the flavour that ``trials`` writes.
        trials: Writes the files.
        measure: Times them.
        state: Keeps the decisions.
        progress: One step for each race.

    Returns:
        The record with these layers in floating point, and how that was decided.
    """
    written: dict[str, tuple[frozenset[str], Path]] = {}

    def file_of(name: str, floats: frozenset[str]) -> Path:
        if floats.issuperset(layers):
            return trials.fp32
        if name not in written or written[name][0] != floats:
            kept = record.with_float(dict.fromkeys(floats, _REASON))
            written[name] = floats, trials.int8(kept, name)
        return written[name][1]

    def race(variants: Mapping[str, frozenset[str]]) -> Mapping[str, Timing]:
        return measure({name: file_of(name, floats) for name, floats in variants.items()})

    groups = groups_of(trials.module, layers)
    key = {"record": record.digest}
    found = place(groups, race, compare, state=state, key=key, progress=progress)
    return record.with_float(dict.fromkeys(found.kept_float, _REASON)), found
