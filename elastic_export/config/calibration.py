"""A calibration recipe: which images, how many, and how ranges are taken from them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from elastic_export.config.base import Schema

__all__ = ["CalibrationRecipe"]


class CalibrationRecipe(Schema):
    """Read from ``calibrate/NAME.yaml``.

    ``percentile`` (of absolute values, in percent) belongs to the percentile method alone.
    ``smooth`` is the alpha of SmoothQuant; None leaves the weights as they are. ``skip`` holds
    shell patterns of module names that stay in floating point.
    """

    schema_version: Literal[1] = 1
    name: str
    method: Literal["max", "percentile", "entropy", "mse"] = "max"
    percentile: Annotated[float, Field(gt=50, le=100)] | None = None
    smooth: Annotated[float, Field(ge=0, le=1)] | None = None
    images: Annotated[int, Field(gt=0)] = 512
    batch_size: Annotated[int, Field(gt=0)] = 32
    skip: tuple[str, ...] = ()
    notes: str = ""

    @model_validator(mode="after")
    def _percentile_where_it_is_read(self) -> CalibrationRecipe:
        if self.method == "percentile" and self.percentile is None:
            raise ValueError('the method "percentile" needs "percentile", for example 99.99')
        if self.method != "percentile" and self.percentile is not None:
            raise ValueError(f'the method "{self.method}" does not read "percentile"; remove it')
        return self
