"""What ``bench --on`` measured on boards, as tables and in one line a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType

from elastic_export.cli.benched import doubts, macs, top1
from elastic_export.cli.tables import titled, told_table

__all__ = ["lines", "tables"]

_HEADERS = (
    "model",
    "MACs",
    "top-1 %",
    "median ms",
    "p90 ms",
    "p99 ms",
    "GPU ms",
    "mJ",
    "2:4 picked",
    "INT8 layers",
    "fused attention",
    "logits",
    "measurement",
    "marks",
)
_FIGURES = len(_HEADERS) - 5
"""Columns between a model's name, MACs and top-1, and what came of its measurement."""
_SOFTWARE = (("JetPack", "jetpack"), ("TensorRT", "tensorrt"))


def tables(found: dict[str, Any]) -> RenderableType:
    """Lay out one table a board, then what to deploy, then what to know about it."""
    parts: list[RenderableType] = []
    for destination, part in found["boards"].items():
        if "error" in part:
            continue
        board = part["result"]["board"]
        where = [board["model"], board["power_mode"]]
        where += [f"{name} {board[key]}" for name, key in _SOFTWARE if board.get(key)]
        title = f"{destination}: {', '.join(str(word) for word in where if word)}"
        rows = [
            _row(name, model, found["bundles"]) for name, model in part["result"]["models"].items()
        ]
        parts.append(titled(title, told_table(_HEADERS, rows)))
        parts += [
            f"{name}: take {choice['precision']}, {choice['why']}"
            for name, choice in part["chosen"].items()
        ]
        parts += [f"Note: {note}" for note in [*part["notes"], *part["learned"]]]
    return Group(*parts)


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Write each model in one line: where, and what it took."""
    for destination, part in found["boards"].items():
        for name, model in part.get("result", {}).get("models", {}).items():
            figures = model.get("latency_ms")
            took = "not measured"
            if figures:
                took = f"{figures['median']:.4g} ms{doubts(model['settled'], model['flags'])}"
            yield f"{destination}: {name} {took}"


def _row(name: str, model: dict[str, Any], bundles: dict[str, Any]) -> list[object]:
    bundle, _, precision = name.rpartition("/")
    known = bundles.get(bundle, {})
    first = [
        name,
        macs(known.get("macs", {}).get(precision)),
        top1(known.get("top1", {}).get(precision)),
    ]
    if model.get("error"):
        return [*first, *[None] * _FIGURES, "failed", model["error"]["what"]]
    if "latency_ms" not in model:
        return [*first, *[None] * _FIGURES, "not measured", None]
    layers = model.get("layers") or {}
    latency, compute = model["latency_ms"], model.get("gpu_compute_ms") or {}
    accuracy = model.get("accuracy")
    return [
        *first,
        latency["median"],
        latency["p90"],
        latency["p99"],
        compute.get("median"),
        _energy(model.get("energy_mj") or {}),
        _picked(layers),
        layers.get("int8_layers"),
        layers.get("fused_attention"),
        None if accuracy is None else "agree" if accuracy["ok"] else "DIFFER",
        "settled" if model["settled"] else f"inconclusive: {model['why']}",
        ", ".join(model["flags"]) or None,
    ]


def _picked(layers: dict[str, Any]) -> str | None:
    """How many of the layers that could run a 2:4 kernel do, by the builder's own log."""
    eligible = layers.get("eligible_sparse")
    return f"{len(layers['picked_sparse'])} of {len(eligible)}" if eligible else None


def _energy(energy: dict[str, Any]) -> str | None:
    """Net of idle where that is known."""
    if energy.get("net_of_idle") is not None:
        return f"{energy['net_of_idle']:.3g}"
    return f"{energy['per_inference']:.3g} with idle" if energy else None
