"""The quantize stage in a real build: interrupted, with training, and placed by measurement."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest import DIGITS, merged

from elastic_export.artifacts.store import Store
from elastic_export.config.loader import load_recipe
from elastic_export.config.recipe import Recipe
from elastic_export.errors import UserError
from elastic_export.pipeline import build, plan

pytestmark = pytest.mark.slow

SMALL = {
    "train": {"steps": 60},
    "descend": {"specs": ["max"], "search": None},
    "finetune": None,
    "sparsify": {"finetune": None},
    "targets": ["host-cpu"],
    "measure": {"sample_ms": 2, "warmup_ms": 5},
}
# Half of all values are cut off: no network keeps its accuracy with such ranges.
RUINOUS = {"name": "ruinous", "method": "percentile", "percentile": 55, "images": 64}


def _recipe(folder: Path, *, smooth: float | None = None, **quantize: Any) -> Recipe:
    """The small recipe with these settings for INT8."""
    calibration = folder / "ruinous.yaml"
    calibration.write_text(json.dumps({**RUINOUS, "smooth": smooth}))
    changes = {**SMALL, "quantize": {"calibration": str(calibration), **quantize}}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(merged(DIGITS, changes)))
    return load_recipe(str(path))


class _Told:
    """Remembers the tasks it is told of; a chosen step of a chosen task is interrupted."""

    def __init__(self, task: str = "", step: int = 0) -> None:
        self.tasks: list[str] = []
        self._cut = (task, step)
        self._steps = 0

    def start(self, label: str, total: int) -> None:
        self.tasks.append(label)
        self._steps = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._steps += 1
        if (self.tasks[-1], self._steps) == self._cut:
            raise KeyboardInterrupt

    def finish(self) -> None:
        """Nothing to remember."""


def _quantized(store: Store) -> dict[str, Any]:
    (key,) = [entry.key for entry in store.entries() if entry.stage == "quantize"]
    found = store.get(key)
    assert found is not None
    return found.summary


def test_an_interrupted_guard_leaves_the_store_and_goes_on(tmp_path: Path) -> None:
    recipe, store = _recipe(tmp_path, guard={"max_drop": 2.0}), Store(tmp_path / "store")
    options: dict[str, Any] = {"out": tmp_path / "out", "store": store, "only": "quantize"}
    with pytest.raises(KeyboardInterrupt):
        build(recipe, progress=_Told("accuracy guard", 3), **options)
    assert [e.stage for e in store.entries() if e.stage == "quantize"] == []
    (state,) = store.root.glob("work/*/guard.*.json")
    # The record itself and three layers, measured and kept.
    before = json.loads(state.read_text())["state"]["accuracy"]
    assert len(before) == 4

    later = _Told()
    build(recipe, progress=later, **options)
    assert "calibrate" not in later.tasks
    guard = _quantized(store)["guard"]
    assert guard["flavour"] == "ort-cpu"
    assert guard["before"] == next(iter(before.values())) < guard["baseline"] - 2.0
    assert guard["drop"] <= 2.0
    assert guard["evaluations"] <= 2 * guard["layers"]
    assert {entry["source"] for entry in guard["returned"]} == {"measured"}
    assert set(guard["ms_from"]["unattributed"]) == {"fp32", "int8"}
    assert not list(store.root.glob("work/*/guard.*.json"))


def test_smoothing_training_and_placement_reach_the_bundle_and_the_report(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "smooth": 0.5,
        "guard": {"max_drop": 100.0},
        "qat": {"steps": 40, "lr": 2e-3},
        "placement": "measured",
    }
    recipe, store = _recipe(tmp_path, **settings), Store(tmp_path / "store")
    built = build(recipe, out=tmp_path / "out", store=store)
    assert built.result is not None
    (descendant,) = built.result.descendants
    told = descendant.quantization
    assert len(told["smoothed"]["layers"]) == 4  # qkv and fc1 of two blocks
    assert told["qat"]["after"] > told["qat"]["before"] + 5
    placement = told["placement"]
    raced = {name for race in placement["decisions"] for name in race["layers"]}
    assert len(raced) >= 4
    assert placement["against_float"]["ratio"] > 0
    (bundle,) = descendant.bundles
    assert bundle.chosen in ("fp32", "int8")
    kept = bundle.checks["int8"]["float_layers"]
    assert set(placement["kept_float"]) <= set(kept)
    assert bundle.checks["int8"]["patterns"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="quantization"' in page
    assert placement["decisions"][0]["group"] in page

    rows = {row.stage: row.cached for row in plan(recipe, store)}
    assert all(rows.values())
    for change in (
        {"placement": "policy"},
        {"qat": None},
        {"attention": "int8"},
        {"smooth": 0.25},
        {"guard": {"max_drop": 50.0}},
    ):
        other = _recipe(tmp_path, **{**settings, **change})
        rows = {row.stage: row.cached for row in plan(other, store)}
        assert (rows["sparsify"], rows["quantize"]) == (True, False), change


def test_a_placement_that_cannot_be_measured_is_refused_first(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, placement="measured")
    recipe = recipe.model_copy(update={"targets": ("a10",)})
    store = Store(tmp_path / "store")
    with pytest.raises(UserError, match="none of its targets runs on this machine"):
        build(recipe, out=tmp_path / "out", store=store)
    assert store.entries() == []
    assert not (tmp_path / "out").exists()
