"""A calibration pass that goes on where it was interrupted.

Everything that a pass collects is of fixed size, so it is saved whole every few seconds, under a
key that says which model, images and recipe it belongs to. Since batches come in a fixed order and
sums in binary64 are restored bit by bit, a resumed pass ends with the bits of an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from elastic_export.artifacts.digest import sha256_json
from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.errors import UserError
from elastic_export.quantize.products import ProductHooks
from elastic_export.quantize.ranges import Range
from elastic_export.train.state import load_state, save_state

__all__ = ["SavedPass", "load_products", "pass_key", "products_state"]

SAVE_SECONDS = 10.0
FORMAT = 1
"""Raised when the saved content changes its meaning."""
FILE = "calibration.state"

State = dict[str, Any]


def pass_key(model_digest: str, data_digest: str, recipe: CalibrationRecipe) -> str:
    """Identify a pass by all that its result depends on, names and notes of the recipe left out."""
    read = {"method", "percentile", "images", "batch_size"}
    return sha256_json(
        {
            "format": FORMAT,
            "model": model_digest,
            "data": data_digest,
            "recipe": recipe.model_dump(mode="json", include=read),
            "torch": torch.__version__,
        }
    )


class SavedPass:
    """The state of one pass on disk.

    Args:
        folder: Where to keep it; None keeps nothing.
        key: See :func:`pass_key`.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path = None if folder is None else folder / FILE
        self._key = key
        self._saved = time.monotonic()

    def load(self, restore: Callable[[Mapping[str, Any]], None]) -> tuple[int, str]:
        """Give a fitting state to ``restore``.

        Returns:
            How many batches are done, and why a state that is there was left alone, if it was.
        """
        if self._path is None:
            return 0, ""
        state, problem = load_state(self._path, self._key)
        if state is None:
            return 0, problem
        restore(state["collected"])
        return int(state["batches"]), ""

    def save(self, batches: int, collected: Callable[[], State]) -> None:
        """Save after a batch, unless that was done a few seconds ago.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        if self._path is None or time.monotonic() - self._saved < SAVE_SECONDS:
            return
        try:
            save_state(self._path, self._key, {"batches": batches, "collected": collected()})
        except UserError:
            self._path = None  # The input is not at fault: the older state is still good.
            raise
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Remove the state, and its folder where nothing else is in there."""
        if self._path is None or not self._path.parent.is_dir():
            return
        self._path.unlink(missing_ok=True)
        if not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()


def products_state(products: ProductHooks) -> State:
    """Return what the hooks of skip connections and attentions have collected."""
    ranges = [[module, role, each.state()] for (module, role), each in products.ranges.items()]
    return {"ranges": ranges, "positions": dict(products.positions)}


def load_products(products: ProductHooks, state: Mapping[str, Any]) -> None:
    """Let the hooks go on from what :func:`products_state` returned."""
    for module, role, saved in state["ranges"]:
        histogram = saved["histogram"]
        sums = histogram is not None and histogram["sums"] is not None
        products.ranges[module, role] = Range(histogram=histogram is not None, sums=sums)
        products.ranges[module, role].load(saved)
    products.positions.update(state["positions"])
