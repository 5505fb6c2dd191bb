"""The shipped calibration recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.config.loader import load_calibration
from elastic_export.errors import UserError
from elastic_export.quantize.calibrate import calibrate

FOLDER = Path(__file__).parents[3] / "calibrate"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


SHIPPED = {"max", "max-512", "mse", "mse-512", "entropy", "smoothquant"}
SHIPPED |= {"percentile-99.9", "percentile-99.99"}


def test_every_method_ships() -> None:
    recipes = [load_calibration(name) for name in NAMES]
    assert set(NAMES) == SHIPPED
    assert {recipe.method for recipe in recipes} == {"max", "percentile", "entropy", "mse"}
    assert [recipe.name for recipe in recipes if recipe.smooth is not None] == ["smoothquant"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"persentile": 99.0}, "persentile"),
        ({"percentile": 99.0}, 'the method "max" does not read "percentile"'),
        ({"method": "entropy", "percentile": 99.0}, 'the method "entropy" does not read'),
        ({"method": "percentile"}, 'the method "percentile" needs "percentile"'),
        ({"method": "percentile", "percentile": 40}, "percentile"),
        ({"method": "histogram"}, "method"),
        ({"smooth": 1.5}, "smooth"),
        ({"images": 0}, "images"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "method": "max"} | change))
    with pytest.raises(UserError, match=said):
        load_calibration(str(path))


def test_a_recipe_survives_being_written() -> None:
    for name in NAMES:
        recipe = load_calibration(name)
        assert CalibrationRecipe.model_validate(recipe.model_dump(mode="json")) == recipe


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
