"""The base of every schema: unknown keys are refused, values do not change after reading."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Schema"]


class Schema(BaseModel):
    """A strict, immutable record read from YAML or JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
