"""The shipped calibration recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.config.loader import load_calibration
from elastic_export.quantize.calibrate import calibrate

FOLDER = Path(__file__).parents[3] / "calibrate"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_the_three_methods_ship() -> None:
    methods = {load_calibration(name).method for name in NAMES}
    assert methods == {"max", "percentile", "entropy"}
    assert {"max", "max-512", "percentile-99.99", "entropy"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_valid_complete_and_explained(name: str) -> None:
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    recipe = CalibrationRecipe.model_validate(values)
    assert recipe.name == name
    assert load_calibration(name) == recipe
    assert recipe.notes
    assert ("percentile" in values) == (recipe.method == "percentile")
    assert f"`{name}`" in (FOLDER / "README.md").read_text()


def test_the_readme_explains_every_field() -> None:
    text = (FOLDER / "README.md").read_text()
    for field in CalibrationRecipe.model_fields:
        assert f"- `{field}`" in text


@pytest.mark.parametrize("name", NAMES)
def test_recipe_runs(name: str, net, make_split) -> None:
    recipe = load_calibration(name)
    record = calibrate(net, make_split(recipe.images), recipe)
    assert record.quantized_modules() == ["mid", "hidden"]
