"""What a board measured, in the words of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_export.config.recipe import MeasureConfig
from elastic_export.config.result import BundleResult, DescendantResult, Latency
from elastic_export.config.targets import ResolvedTarget
from elastic_export.errors import CheckFailed, ElasticExportError, UserError
from elastic_export.measure.marks import DISTURBED, NO_FIGURE, WRONG_LOGITS
from elastic_export.pipeline.remote import timing_of
from elastic_export.pipeline.result import NOT_BUILT

__all__ = ["with_board"]

_RUNTIMES = {"trtexec": "TensorRT", "tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime"}


def with_board(
    one: DescendantResult,
    name: str,
    target: ResolvedTarget,
    part: Mapping[str, Any],
    settings: MeasureConfig,
) -> tuple[DescendantResult, list[ElasticExportError]]:
    """Add to a descendant what a board measured of its bundle for one target.

    Args:
        one: The descendant.
        name: What its bundles are called in ``part``.
        target: Which of its bundles.
        part: What a visit left: ``board``, ``result``, ``chosen`` and ``notes``.
        settings: Batch size and threads.

    Returns:
        The descendant, and what went wrong with single models: a ``CheckFailed`` for logits that
        differ, a ``UserError`` for what could not be measured. What computes something else, or ran
        in another runtime, has no latency of the target.
    """
    prefix = f"{name}/"
    models = {
        key.removeprefix(prefix): model
        for key, model in part["result"]["models"].items()
        if key.startswith(prefix)
    }
    if not models:
        what = f"Nothing of {one.name} for {target.identity} was measured on {part['board']}."
        return one, [UserError(what, "Run the same command again with --fresh.")]
    bundles = tuple(
        _with_models(bundle, models, part, settings, name)
        if bundle.target == target.identity
        else bundle
        for bundle in one.bundles
    )
    wrong = [
        error
        for precision, model in models.items()
        if (error := _wrong(one.name, precision, model, target, part["board"])) is not None
    ]
    return one.model_copy(update={"bundles": bundles}), wrong


def _with_models(
    bundle: BundleResult,
    models: Mapping[str, Any],
    part: Mapping[str, Any],
    settings: MeasureConfig,
    name: str,
) -> BundleResult:
    timed = {
        p: model
        for p, model in models.items()
        if model.get("latency_ms") and not NO_FIGURE & set(model["flags"])
    }
    choice = part["chosen"].get(name, {})
    board = part["result"]["board"]
    engines = {p: report for p, model in models.items() if (report := _engine(model, board))}
    notes = [note for note in bundle.notes if note != NOT_BUILT or not engines]
    notes += [note for note in part["notes"] if note not in notes]
    notes += [
        f"{p} gives other logits on {part['board']} than here, so its latency is not shown."
        for p, model in models.items()
        if WRONG_LOGITS in model["flags"]
    ]
    checks = {
        p: {**checks, "on_board": models[p]["accuracy"]}
        if models.get(p, {}).get("accuracy")
        else checks
        for p, checks in bundle.checks.items()
    }
    return bundle.model_copy(
        update={
            "latency": {p: _latency(p, m, part, settings) for p, m in timed.items()},
            "chosen": choice.get("precision"),
            "chosen_because": choice.get("why", "Nothing could be compared on the board."),
            "engines": bundle.engines | engines,
            "checks": checks,
            "notes": tuple(notes),
        }
    )


def _latency(
    precision: str, model: Mapping[str, Any], part: Mapping[str, Any], settings: MeasureConfig
) -> Latency:
    compute, energy = model.get("gpu_compute_ms") or {}, model.get("energy_mj") or {}
    net = energy.get("net_of_idle")
    board = part["result"]["board"]
    measured = timing_of(model).latency(
        runner=_runner(model, board),
        precision=precision,
        batch_size=settings.batch_size,
        threads=settings.threads,
        machine=board,
    )
    doubts = [why for mark, why in DISTURBED.items() if mark in model["flags"]]
    return measured.model_copy(
        update={
            "settled": measured.settled and not doubts,
            "unsettled_because": "; ".join(filter(None, [measured.unsettled_because, *doubts])),
            "on": part["board"],
            "compute_ms": compute.get("median"),
            "energy_mj": energy.get("per_inference") if net is None else net,
            "energy_is": "" if not energy else "with idle" if net is None else "net of idle",
            "marks": tuple(model["flags"]),
        }
    )


def _runner(model: Mapping[str, Any], board: Mapping[str, Any]) -> str:
    title = _RUNTIMES.get(model["runtime"], model["runtime"])
    version = f" {board['tensorrt']}" if title == "TensorRT" and board.get("tensorrt") else ""
    return f"{title}{version}"


def _engine(model: Mapping[str, Any], board: Mapping[str, Any]) -> dict[str, Any]:
    """What the board's builder made, in the words of the engines that are built here."""
    built, layers = model.get("built"), model.get("layers") or {}
    if built is None or _RUNTIMES.get(model["runtime"]) != "TensorRT":
        return {}
    sparse = {key: layers[key] for key in ("eligible_sparse", "picked_sparse") if key in layers}
    return {
        "status": "built",
        "runtime": "TensorRT",
        "version": board.get("tensorrt"),
        "layers": layers.get("layers"),
        "seconds": built.get("seconds"),
        "bytes": built.get("engine_bytes"),
        "int8_layers": layers.get("int8_layers"),
        "fused_attention": layers.get("fused_attention"),
        **sparse,
    }


def _wrong(
    descendant: str, precision: str, model: Mapping[str, Any], target: ResolvedTarget, board: str
) -> ElasticExportError | None:
    what = f"{precision} of {descendant} for {target.identity}"
    if model.get("error"):
        error = model["error"]
        return UserError(f"{what} was not measured on {board}: {error['what']}", error["remedy"])
    if WRONG_LOGITS in model["flags"]:
        found = model["accuracy"]
        return CheckFailed(
            f"On {board} {what} gives other logits than here (largest relative difference "
            f"{found['max_relative_error']}, {found['tolerance']} is allowed).",
            "Do not deploy it; see its checks in the report, and try another precision.",
        )
    return None
