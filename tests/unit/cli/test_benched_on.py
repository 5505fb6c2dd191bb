"""What a board measured, as a person reads it."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from elastic_export.cli.benched_on import lines, tables


def model(median: float, **more: Any) -> dict[str, Any]:
    figures = {"median": median, "p90": median, "p99": median}
    return {
        "latency_ms": figures,
        "settled": True,
        "why": "",
        "flags": [],
        "accuracy": {"ok": True},
        **more,
    }


def found(**models: dict[str, Any]) -> dict[str, Any]:
    board = {"model": "Orin", "power_mode": "15W", "jetpack": "6.2", "tensorrt": "10.3.0"}
    top1 = {"top1": 97.5, "how": "emulated"}
    return {
        "boards": {
            "user@orin": {
                "result": {
                    "board": board,
                    "models": {f"net/{name}": one for name, one in models.items()},
                },
                "chosen": {"net": {"precision": "int8", "why": "it is faster."}},
                "notes": ["A note."],
                "learned": ["Estimates changed."],
            },
            "away": {"error": {"what": "It cannot be reached.", "fix": "Try by hand."}},
        },
        "failed": ["away"],
        "bundles": {
            "net": {"target": "x", "macs": {"int8": 1_260_000_000}, "top1": {"int8": top1}}
        },
    }


def text(told: dict[str, Any]) -> str:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(tables(told))
    return console.file.getvalue()


def test_latency_stands_beside_macs_accuracy_and_sparse_layers() -> None:
    layers = {
        "eligible_sparse": ["a", "b", "c"],
        "picked_sparse": ["a"],
        "int8_layers": 7,
        "fused_attention": 0,
    }
    energy = {"per_inference": 20.0, "net_of_idle": 9.25}
    shown = text(found(int8=model(2.5, layers=layers, energy_mj=energy)))
    assert "user@orin: Orin, 15W, JetPack 6.2, TensorRT 10.3.0" in shown
    row = next(line for line in shown.splitlines() if "net/int8" in line)
    for cell in ("1.26 G", "97.50 emulated", "2.5", "9.25", "1 of 3", "7", "0", "agree", "settled"):
        assert cell in row, cell
    assert "net: take int8, it is faster." in shown
    assert "Note: A note." in shown
    assert "Note: Estimates changed." in shown


def test_columns_that_nobody_has_are_left_out() -> None:
    shown = text(found(fp16=model(2.0)))
    for header in ("mJ", "GPU ms", "2:4 picked", "INT8 layers", "fused attention", "marks"):
        assert header not in shown, header
    assert "p99 ms" in shown


def test_failures_stand_in_their_row() -> None:
    failed = {"error": {"what": "It cannot be built.", "remedy": "Add swap."}, "flags": []}
    wrong = model(1.0, accuracy={"ok": False}, flags=["wrong_logits", "unpinned"])
    told = found(fp32=failed, fp16={"error": None, "flags": []}, int8=wrong)
    shown = text(told)
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip().startswith("net/")}
    assert "failed" in rows["net/fp32"]
    assert "It cannot be built." in rows["net/fp32"]
    assert "not measured" in rows["net/fp16"]
    assert "DIFFER" in rows["net/int8"]
    assert "wrong_logits, unpinned" in rows["net/int8"]
    assert list(lines(told)) == [
        "user@orin: net/fp32 not measured",
        "user@orin: net/fp16 not measured",
        "user@orin: net/int8 1 ms (wrong_logits, unpinned)",
    ]
