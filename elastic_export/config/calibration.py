"""A calibration recipe: which images, how many, and how ranges are taken from them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from elastic_export.config.base import Schema

__all__ = ["CalibrationRecipe"]


class CalibrationRecipe(Schema):
    """Read from ``calibrate/NAME.yaml``.

    ``percentile`` (of absolute values, in percent) is read only by the percentile method. ``skip``
    holds shell patterns of module names that stay in floating point.
    """

    schema_version: Literal[1] = 1
    name: str
    method: Literal["max", "percentile", "entropy"] = "max"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    images: Annotated[int, Field(gt=0)] = 512
    batch_size: Annotated[int, Field(gt=0)] = 32
    skip: tuple[str, ...] = ()
    notes: str = ""
