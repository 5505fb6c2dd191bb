"""Calibration images, batch by batch through a network, with errors that say which batch."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.data import Split
from elastic_export.errors import UserError
from elastic_export.quantize.ranges import NotFiniteError, finite_range

__all__ = ["batch_count", "calibration_images", "forward_batch", "run_batches"]


def calibration_images(split: Split, recipe: CalibrationRecipe) -> Split:
    """Return the first images of the class-balanced order, as many as the recipe asks for.

    Raises:
        UserError: the split is empty or holds fewer.
    """
    if len(split) == 0:
        raise UserError(
            "The calibration set holds no images.", "Give a data set whose training split has some."
        )
    return split.head(recipe.images)


def batch_count(recipe: CalibrationRecipe) -> int:
    """Return how many batches a pass has."""
    return math.ceil(recipe.images / recipe.batch_size)


def run_batches(
    model: nn.Module,
    images: Split,
    recipe: CalibrationRecipe,
    after: Callable[[int], None],
    *,
    start: int = 0,
) -> None:
    """Run images through a network.

    Args:
        model: Takes (B, C, H, W) float32; runs where its parameters are.
        images: As many as the recipe says.
        recipe: Names the batch size.
        after: Told after each batch how many are done.
        start: Batches to leave out at the beginning.

    Raises:
        UserError: an image cannot be read (which file), the network cannot take the images, or a
            value is not finite (where, in which batch).
    """
    count = batch_count(recipe)
    for done, (x, _) in enumerate(images.batches(recipe.batch_size, start=start), start + 1):
        try:
            finite_range(x, "the calibration images")
            forward_batch(model, x)
        except NotFiniteError as error:
            where = f"in batch {done} of {count} (at most {recipe.batch_size} images each)"
            raise NotFiniteError(f"{error.what.removesuffix('.')}, {where}.", error.fix) from error
        after(done)


def forward_batch(model: nn.Module, x: Tensor) -> None:
    """Run one batch where the parameters of the network are.

    Raises:
        UserError: the network cannot take it; the message says what it wants.
    """
    try:
        model(x.to(next(model.parameters()).device))
    except (RuntimeError, AssertionError, ValueError) as error:
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if first is not None and first.in_channels != x.shape[1]:
            raise UserError(
                f"The calibration images have {x.shape[1]} channel(s), but the module takes "
                f"{first.in_channels}.",
                "Set data.transform.channels to what the module was trained with.",
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The module cannot take calibration images of shape {tuple(x.shape[1:])}: "
            f"{reason.removesuffix('.')}.",
            "Set data.transform to the size and channels the module was trained with.",
        ) from error
