"""The accuracy guard of a descendant, on the form that its target deploys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from elastic_export.config.recipe import GuardConfig
from elastic_export.config.targets import ResolvedTarget
from elastic_export.data import Split
from elastic_export.data.evaluate import top1
from elastic_export.engine.layer_times import LayerTimes, saved_ms
from elastic_export.errors import CheckFailed
from elastic_export.export.reference import rounded_like
from elastic_export.measure.machine import describe_machine
from elastic_export.pipeline.quantizing.trials import Trials, int8_flavour
from elastic_export.progress import Progress
from elastic_export.quantize.guard import guard
from elastic_export.quantize.record import AttentionPrecision, QuantizationRecord

__all__ = ["hold"]


def hold(
    module: nn.Module,
    record: QuantizationRecord,
    split: Split,
    asked: GuardConfig,
    target: ResolvedTarget,
    attention: AttentionPrecision,
    trials: Trials,
    *,
    baseline: float,
    threads: int,
    state: Path,
    progress: Progress,
) -> tuple[QuantizationRecord, dict[str, Any]]:
    """Return layers to floating point until a target's form of INT8 holds the guard.

    What a layer saves is measured where the target is this machine, once layers must return; for
    another device points alone decide.

    Args:
        module: The weights that are deployed.
        record: Their record.
        split: The images that accuracy is measured on.
        asked: The guard.
        target: Whose flavour is evaluated.
        attention: The form of the attention products.
        trials: Writes the files whose layers are timed.
        baseline: Top-1 in floating point on ``split``, in percent.
        threads: Threads the files run on.
        state: Keeps what was evaluated.
        progress: Told of every evaluation.

    Returns:
        The record that holds, and what the guard found as plain values.

    Raises:
        CheckFailed: The guard cannot be held, or not with a single layer in INT8.
    """
    flavour = int8_flavour(target)
    placed = record.placed(flavour, attention=attention)
    layers = placed.quantized_modules()
    if flavour != "ort-cpu":  # which has no INT8 form of attention products
        layers += placed.int8_attentions()
    times: dict[str, LayerTimes] = {}

    def accuracy(candidate: QuantizationRecord) -> float:
        return top1(rounded_like(module, candidate, flavour, attention=attention), split)

    def savings() -> dict[str, float]:
        if target.target.kind != "host":
            return {}
        int8 = trials.int8(record, "guard")
        found, profiles = saved_ms(trials.fp32, int8, layers, threads=threads)
        times.update(profiles)
        return found

    held = guard(
        record,
        accuracy,
        baseline,
        asked.max_drop,
        saved_ms=savings,
        layers=layers,
        state=state,
        progress=progress,
    )
    if not held.record.placed(flavour).quantized_modules():
        raise CheckFailed(
            f"To lose at most {asked.max_drop:g} points, every layer has to go back to floating "
            "point, so nothing is left in INT8.",
            "Train with quantize.qat, choose another quantize.calibration, allow a larger "
            'quantize.guard.max_drop, or leave INT8 out with "--set quantize=null".',
        )
    told = held.to_json() | {"flavour": flavour, "target": target.identity, "split": split.name}
    if times:
        told["ms_from"] = {
            "runner": "ONNX Runtime's profiler on this machine",
            "machine": describe_machine(),
            "unattributed": {name: round(found.unattributed, 3) for name, found in times.items()},
        }
    return held.record, told
