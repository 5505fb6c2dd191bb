from __future__ import annotations

import pytest

from elastic_export.config.result import BuildResult
from elastic_export.report.html import to_html
from elastic_export.report.quantization import (
    describe_quantization,
    placement_races,
    returned_layers,
)

GUARD = {
    "baseline": 97.5,
    "before": 95.0,
    "after": 97.0,
    "drop": 0.5,
    "max_drop": 1.0,
    "returned": [
        {"module": "blocks.0.fc1", "gain": 1.5, "saved_ms": 0.25, "source": "measured"},
        {"module": "blocks.1.fc1", "gain": 0.5, "saved_ms": None, "source": "none"},
    ],
    "layers": 8,
    "evaluations": 11,
    "flavour": "ort-cpu",
    "split": "search",
}
VERDICT = {"ratio": 0.951, "low": 0.94, "high": 0.962, "faster": True}
PLACEMENT = {
    "decisions": [
        {"group": "blocks.*.fc2", "layers": ["a", "b"], "verdict": VERDICT, "float": True}
    ],
    "summary": "Kept in float: 2 layers, 4.9 % faster.",
    "target": "host-cpu@ort",
}


@pytest.fixture
def result(make_result) -> BuildResult:
    return make_result()


def _with(result: BuildResult, **told: object) -> BuildResult:
    first, *others = result.descendants
    quantization = {"calibrator": "max", "images": 256, **told}
    changed = first.model_copy(update={"quantization": quantization})
    return result.model_copy(update={"descendants": (changed, *others)})


def test_a_result_without_quantization_has_no_section(result: BuildResult) -> None:
    assert describe_quantization(result).rows == ()
    assert returned_layers(result).rows == placement_races(result).rows == ()
    assert 'id="quantization"' not in to_html(result, [])


def test_returned_layers_tell_gain_and_milliseconds(result: BuildResult) -> None:
    told = _with(result, guard=GUARD)
    name = result.descendants[0].name
    assert [row[:3] for row in returned_layers(told).rows] == [
        (name, "blocks.0.fc1", "+1.50"),
        (name, "blocks.1.fc1", "+0.50"),
    ]
    assert [row[4] for row in returned_layers(told).rows] == ["measured", "none"]
    (row,) = describe_quantization(told).rows
    assert "2 layers of 8 back in float" in row[-1]
    assert "11 evaluations" in row[-1]


def test_a_guard_that_holds_says_so(result: BuildResult) -> None:
    told = _with(result, guard={**GUARD, "returned": [], "after": 97.25})
    (row,) = describe_quantization(told).rows
    assert row[-1].startswith("holds: 97.2")


def test_training_smoothing_and_placement_have_their_place(result: BuildResult) -> None:
    told = _with(
        result,
        smoothed={"alpha": 0.5, "layers": ["a", "b", "c"]},
        qat={"before": 90.0, "after": 96.5, "steps": 150},
        placement={**PLACEMENT, "guard": GUARD},
    )
    grid = describe_quantization(told)
    (row,) = grid.rows
    text = " | ".join(row)
    assert "3 layers smoothed (alpha 0.5)" in text
    assert "in 150 steps" in text
    assert "Kept in float: 2 layers, 4.9 % faster. (host-cpu@ort)" in text
    assert placement_races(told).rows[0][1:] == ("blocks.*.fc2", "2", "0.951 (0.940-0.962)", "yes")
    assert len(returned_layers(told).rows) == 2
    page = to_html(told, [])
    for part in ('id="quantization"', "blocks.0.fc1", "blocks.*.fc2"):
        assert part in page
