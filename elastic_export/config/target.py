"""A target: the device, its software and its power mode, and what they allow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from elastic_export.config.base import Schema

__all__ = ["Figure", "Flavour", "Precision", "Software", "Target"]

Precision = Literal["fp32", "fp16", "int8"]
Flavour = Literal["plain", "ort-cpu", "ort-trt", "trt-strong", "trt-weak"]
# Parts of an identity, which becomes a folder's name too: no separators, no dot in front.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Figure(Schema):
    """A number with its origin; ``verified`` is false where no second source was found."""

    value: float
    source: str
    verified: bool = True


class Software(Schema):
    """What runs on the device: the runtime, its version, and what its parser takes.

    ``lacks`` names operators that ``max_opset`` has and this parser does not; ``int8-weights``
    among them says that it takes no stored INT8 weights. ``flavours`` is given where this release
    wants other forms than the target's, and ``power_modes`` where it offers other modes.
    ``verified`` is false where it is not certain that the device runs it.
    """

    name: Name
    runtime: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    runtime_version: str
    max_opset: Annotated[int, Field(ge=9)]
    lacks: tuple[str, ...] = ()
    flavours: dict[Precision, Flavour] | None = None
    power_modes: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    python: str | None = None
    source: str
    verified: bool = True


class Target(Schema):
    """One device profile, read from ``targets/NAME.yaml``.

    ``software`` lists what the device may run, the default first; ``power_modes`` likewise.
    ``flavours`` maps a precision to the form of ONNX that the device's runtime wants.
    ``sm`` is the CUDA compute capability times ten (86 for 8.6).
    ``static_shapes`` is true where an engine cannot be built for a size that is left open.
    ``aliases`` are other names of the same device, such as its module number.
    """

    schema_version: Literal[1] = 1
    name: Name
    aliases: tuple[Name, ...] = ()
    title: str
    kind: Literal["host", "gpu", "jetson"]
    sm: int | None = None
    software: Annotated[tuple[Software, ...], Field(min_length=1)]
    power_modes: tuple[Name, ...] = ()
    flavours: dict[Precision, Flavour]
    sparse_2_4: bool
    static_shapes: bool = False
    build_on: Literal["none", "anywhere", "device"]
    peaks: dict[str, Figure] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _gpu_has_compute_capability(self) -> Target:
        if self.kind != "host" and self.sm is None:
            raise ValueError("a gpu or jetson target needs sm")
        return self

    @model_validator(mode="after")
    def _modes_are_known(self) -> Target:
        """A figure of a misspelt mode would never be read, and nobody would notice."""
        named = [(f'peaks has "{key}"', key.partition("@")[2]) for key in self.peaks if "@" in key]
        named += [
            (f"the software {entry.name} has the power mode {mode}", mode)
            for entry in self.software
            for mode in entry.power_modes or ()
        ]
        for where, mode in named:
            if mode not in self.power_modes:
                raise ValueError(f"{where}, but power_modes does not name it")
        return self
