"""What ``bench`` measured on this machine, as a table and in one line a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType

from elastic_export.cli.tables import titled, told_table
from elastic_export.report.units import count

__all__ = ["doubts", "lines", "macs", "tables", "top1"]

_HEADERS = (
    "model",
    "runner",
    "precision",
    "MACs",
    "top-1 %",
    "median ms",
    "p90 ms",
    "p99 ms",
    "logits",
    "measurement",
    "marks",
)


def tables(found: dict[str, Any]) -> RenderableType:
    """Lay out one row a candidate, then what to deploy, then what to know about it."""
    machine = found["machine"]
    gpu = [machine["gpu"]["name"]] if "gpu" in machine else []
    title = ", ".join(
        ["Latency on this machine", machine["cpu"], *gpu, f"{found['threads']} thread(s)"]
    )
    rows = [_row(model) for model in found["models"]]
    taken = [
        f"{name}: take {choice['precision']} with {choice['runner']}, {choice['why']}"
        for name, choice in found["chosen"].items()
    ]
    notes = [f"Note: {note}" for note in found["notes"]]
    return Group(titled(title, told_table(_HEADERS, rows)), *taken, *notes)


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Write each model in one line: what every runner took, and what to deploy."""
    for name in dict.fromkeys(model["model"] for model in found["models"]):
        parts = [_short(model) for model in found["models"] if model["model"] == name]
        choice = found["chosen"].get(name)
        take = f"; take {choice['precision']}" if choice else ""
        yield f"{name}: {', '.join(parts)}{take}"


def _row(model: dict[str, Any]) -> list[object]:
    latency, logits = model["latency"], model["logits"]
    return [
        model["model"],
        model["runner"],
        model["precision"],
        macs(model["macs"]),
        top1(model["top1"]),
        latency["median_ms"],
        latency["p90_ms"],
        latency["p99_ms"],
        None if logits is None else "agree" if logits["ok"] else "DIFFER",
        _settled(latency),
        ", ".join(model["marks"]) or None,
    ]


def macs(value: int | None) -> str | None:
    """Write MACs shortly: ``1.26 G``."""
    return None if value is None else count(value)


def top1(accuracy: dict[str, Any] | None) -> str | None:
    """Write an accuracy, with *emulated* where the device was absent."""
    if accuracy is None:
        return None
    emulated = " emulated" if accuracy["how"] == "emulated" else ""
    return f"{accuracy['top1']:.2f}{emulated}"


def _settled(latency: dict[str, Any]) -> str:
    if latency["settled"]:
        return "settled"
    return f"inconclusive: {latency['unsettled_because']}"


def _short(model: dict[str, Any]) -> str:
    latency = model["latency"]
    said = f"{model['runner']} {model['precision']} {latency['median_ms']:.4g} ms"
    return said + doubts(latency["settled"], model["marks"])


def doubts(settled: bool, marks: Sequence[str]) -> str:
    """Write what is doubtful of a figure behind it: `` (inconclusive, unpinned)``."""
    told = [*([] if settled else ["inconclusive"]), *marks]
    return f" ({', '.join(told)})" if told else ""
