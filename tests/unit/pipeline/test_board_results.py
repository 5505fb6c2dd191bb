"""What a board's script wrote becomes rows of the report, and what is wrong becomes an error."""

from __future__ import annotations

from typing import Any

from elastic_export.config.recipe import MeasureConfig
from elastic_export.config.result import BundleResult, Cost, DescendantResult
from elastic_export.config.targets import load_target
from elastic_export.errors import CheckFailed, UserError
from elastic_export.pipeline.board_results import with_board
from elastic_export.pipeline.result import NOT_BUILT

ORIN = load_target("orin-nano-8gb@jp6.2:15W")


def model(**changes: Any) -> dict[str, Any]:
    """A model as the script writes it."""
    return {
        "runtime": "trtexec",
        "error": None,
        "flags": [],
        "latency_ms": {"median": 2.0, "p90": 2.1, "p99": 2.5, "cov": 0.02, "n": 900},
        "gpu_compute_ms": {"median": 1.8},
        "samples_ms": [2.0] * 10,
        "settled": True,
        "why": "",
        "energy_mj": {"per_inference": 20.0, "net_of_idle": 9.0},
        "accuracy": {"ok": True, "max_relative_error": 0.01, "tolerance": 0.02},
        "built": {"seconds": 60.0, "engine_bytes": 1000},
        "layers": {"layers": 9, "int8_layers": 4, "fused_attention": 1},
        **changes,
    }


def descendant() -> DescendantResult:
    bundle = BundleResult(
        target=ORIN.identity,
        folder="x",
        files={p: f"model.{p}.onnx" for p in ("fp16", "int8")},
        bytes={},
        accuracy={},
        checks={p: {"opset": 20} for p in ("fp16", "int8")},
        notes=(NOT_BUILT, "Another note."),
    )
    other = bundle.model_copy(update={"target": "a10@rtx"})
    cost = Cost(macs=4, algorithmic_macs=2, hardware_macs=2, params=1)
    return DescendantResult(
        name="d1", spec_id="0", spec={}, cost=cost, accuracy={}, bundles=(bundle, other)
    )


def told(**models: dict[str, Any]) -> tuple[DescendantResult, list[Exception]]:
    part = {
        "board": "user@orin",
        "result": {
            "board": {"tensorrt": "10.3.0.30"},
            "models": {f"run d1/{p}": m for p, m in models.items()} | {"run d2/int8": model()},
        },
        "chosen": {"run d1": {"precision": "int8", "why": "It is faster."}},
        "notes": ["The board says so."],
    }
    settings = MeasureConfig(batch_size=2)
    return with_board(descendant(), "run d1", ORIN, part, settings)


def test_figures_of_the_right_target_alone() -> None:
    one, wrong = told(fp16=model(energy_mj=None), int8=model())
    assert wrong == []
    orin, a10 = one.bundles
    assert not a10.latency
    assert set(orin.latency) == {"fp16", "int8"}
    int8 = orin.latency["int8"]
    assert (int8.median_ms, int8.compute_ms, int8.batch_size, int8.runs) == (2.0, 1.8, 2, 900)
    assert (int8.energy_mj, int8.energy_is, int8.on) == (9.0, "net of idle", "user@orin")
    assert orin.latency["fp16"].energy_mj is None
    assert (orin.chosen, orin.chosen_because) == ("int8", "It is faster.")
    assert orin.notes == ("Another note.", "The board says so.")
    assert orin.engines["int8"]["version"] == "10.3.0.30"
    assert orin.checks["int8"] == {"opset": 20, "on_board": model()["accuracy"]}


def test_a_throttled_figure_is_never_settled() -> None:
    one, wrong = told(int8=model(flags=["unpinned", "throttled"]))
    latency = one.bundles[0].latency["int8"]
    assert (latency.status, latency.marks) == ("inconclusive", ("unpinned", "throttled"))
    assert latency.unsettled_because == "the GPU was held back meanwhile"
    assert wrong == []


def test_energy_with_idle_says_so() -> None:
    one, _ = told(int8=model(energy_mj={"per_inference": 20.0, "net_of_idle": None}))
    latency = one.bundles[0].latency["int8"]
    assert (latency.energy_mj, latency.energy_is) == (20.0, "with idle")


def test_another_runtime_makes_no_engine() -> None:
    other = model(runtime="onnxruntime", built={"seconds": 0.1}, flags=["other_runtime"])
    orin = told(int8=other)[0].bundles[0]
    assert (orin.engines, orin.latency) == ({}, {})
    assert NOT_BUILT in orin.notes


def test_a_visit_that_knows_nothing_of_a_descendant_is_an_error() -> None:
    one, (error,) = told()
    assert "Nothing of d1 for orin-nano-8gb@jp6.2:15W was measured" in str(error)
    assert one == descendant()


def test_logits_that_differ_fail_a_check() -> None:
    bad = {"ok": False, "max_relative_error": 0.4, "tolerance": 0.02}
    one, (error,) = told(int8=model(flags=["wrong_logits"], accuracy=bad), fp16=model())
    assert isinstance(error, CheckFailed)
    assert "int8 of d1 for orin-nano-8gb@jp6.2:15W gives other logits than here" in error.what
    assert "0.4" in error.what
    orin = one.bundles[0]
    # A network that computes something else has no latency, and the reader is told.
    assert set(orin.latency) == {"fp16"}
    assert any("int8 gives other logits on user@orin" in note for note in orin.notes)
    assert orin.checks["int8"]["on_board"] == bad


def test_a_model_that_failed_is_an_error_and_no_figure() -> None:
    failed = {
        "runtime": "trtexec",
        "error": {"what": "It cannot be built.", "remedy": "Add swap."},
        "flags": [],
    }
    one, (error,) = told(int8=failed, fp16=model())
    assert isinstance(error, UserError)
    assert error.what.endswith("was not measured on user@orin: It cannot be built.")
    assert error.fix == "Add swap."
    assert set(one.bundles[0].latency) == {"fp16"}
