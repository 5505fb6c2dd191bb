"""Read recipes, calibration recipes and targets, by shipped name or by path."""

from __future__ import annotations

from collections.abc import Sequence

from elastic_export import resources
from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.config.overrides import apply_overrides
from elastic_export.config.problems import validated
from elastic_export.config.reading import read_mapping
from elastic_export.config.recipe import Recipe
from elastic_export.config.targets import ResolvedTarget, check_target, load_target

__all__ = [
    "DEFAULT_RECIPE",
    "ResolvedTarget",
    "check_target",
    "load_calibration",
    "load_recipe",
    "load_target",
]

DEFAULT_RECIPE = "digits"


def load_recipe(name_or_path: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Paths inside a recipe are relative to the folder the program runs in.

    Args:
        name_or_path: A shipped recipe or a file; the shipped ``digits`` when None.
        overrides: ``a.b.c=VALUE``, with VALUE read as YAML.

    Raises:
        UserError: When it cannot be read, or holds what the schema does not know.
    """
    if name_or_path is None:
        path = resources.shipped_file("benchmarks", DEFAULT_RECIPE)
    else:
        path = resources.find("benchmarks", name_or_path)
    values = apply_overrides(read_mapping(path, "recipe"), overrides)
    where = f"the recipe {path.name}" + (" with the given overrides" if overrides else "")
    change = f"Correct it in {path}, or override it with --set KEY=VALUE."
    if path.is_relative_to(resources.shipped("benchmarks")):
        change = "Override it with another --set KEY=VALUE, or pass a recipe file of your own."
    return validated(Recipe, values, where, change)


def load_calibration(name_or_path: str) -> CalibrationRecipe:
    """Read a calibration recipe, shipped or a file of one's own.

    Raises:
        UserError: When it cannot be read, or holds what the schema does not know.
    """
    path = resources.find("calibrate", name_or_path)
    values = read_mapping(path, "calibration recipe")
    where = f"the calibration recipe {path.name}"
    return validated(CalibrationRecipe, values, where, f"Correct it in {path}.")
