"""From the recipe's ``data`` section to a data set."""

from __future__ import annotations

from elastic_export.config.recipe import DataConfig
from elastic_export.data.digits import load_digits
from elastic_export.data.imagefolder import load_imagefolder
from elastic_export.data.splits import Dataset

__all__ = ["load_dataset"]


def load_dataset(config: DataConfig, *, seed: int = 0) -> Dataset:
    """Load the data set of a recipe.

    Args:
        config: Which data set, where, and how images are transformed.
        seed: Decides which training images are held out for the search, never the test split.

    Raises:
        UserError: The images are not there, or not in the shape the data set needs.
    """
    if config.dataset == "digits":
        return load_digits(config, seed=seed)
    return load_imagefolder(config, seed=seed)
