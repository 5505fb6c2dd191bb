"""A target: the device, its software and its power mode, and what they allow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from elastic_export.config.base import Schema

__all__ = ["Figure", "Flavour", "Precision", "Software", "Target"]

Precision = Literal["fp32", "fp16", "int8"]
Flavour = Literal["plain", "ort-cpu", "ort-trt", "trt-strong", "trt-weak"]


class Figure(Schema):
    """A number with its origin; ``verified`` is false where no second source was found."""

    value: float
    source: str
    verified: bool = True


class Software(Schema):
    """What runs on the device: the runtime, its version, and what its parser takes.

    ``lacks`` names operators that ``max_opset`` has and this parser does not; ``flavours`` is given
    where this release wants other forms than the target's.
    """

    name: str
    runtime: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    runtime_version: str
    max_opset: Annotated[int, Field(ge=9)]
    lacks: tuple[str, ...] = ()
    flavours: dict[Precision, Flavour] | None = None
    python: str | None = None
    source: str


class Target(Schema):
    """One device profile, read from ``targets/NAME.yaml``.

    ``software`` lists what the device may run, the default first; ``power_modes`` likewise.
    ``flavours`` maps a precision to the form of ONNX that the device's runtime wants.
    ``sm`` is the CUDA compute capability times ten (86 for 8.6).
    """

    schema_version: Literal[1] = 1
    name: str
    title: str
    kind: Literal["host", "gpu", "jetson"]
    sm: int | None = None
    software: Annotated[tuple[Software, ...], Field(min_length=1)]
    power_modes: tuple[str, ...] = ()
    flavours: dict[Precision, Flavour]
    sparse_2_4: bool
    build_on: Literal["none", "anywhere", "device"]
    peaks: dict[str, Figure] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _gpu_has_compute_capability(self) -> Target:
        if self.kind != "host" and self.sm is None:
            raise ValueError("a gpu or jetson target needs sm")
        return self
