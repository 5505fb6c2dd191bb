"""One row of a golden fixture: what is imported, which spec, and what must come out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A descendant of a checkpoint with the official results.

    Attributes:
        name: The arch in ``fixture.json``.
        source: The file or folder to import.
        config: What a user gives with it: the system's YAML content, options, family settings.
        spec: What ``resolve_spec`` takes.
        input: Key of the images in ``expected.safetensors``.
        logits: Key of the official logits; ``logits + "_f64"`` is their float64 twin.
        format: The reader; ``auto`` must find it.
        family: The family where the user must name it.
        official: Costs by the system's own counter, as the reader's ``official`` names them.
        official_tolerance: Relative; for counters that round.
        params: Parameters of the extracted network by the official code, where it counts them.
        recalibrate: Key of batches (n, B, C, H, W) for the BatchNorm statistics, if any.
        biased: Whether the system averages the biased variance of the batches.
        batch: Take only so many of the images.
        final_size: Resize the images bicubically first, as the transform's ``final_size`` does.
        masks: Parameter of the plain module to the key of its official mask (1 keep, 0 removed).
        transform: Turns the extracted module into the one whose logits are expected.
        float64_tolerance: Relative; larger where the system itself computes in float32.
        only_float64: A reason why float32 logits are not compared, if there is one.
    """

    name: str
    source: Path
    config: Mapping[str, Any]
    spec: str | Mapping[str, Any]
    input: str
    logits: str
    format: str = "auto"
    family: str | None = None
    official: Mapping[str, float] = field(default_factory=dict)
    official_tolerance: float = 1e-9
    params: int | None = None
    recalibrate: str | None = None
    biased: bool = False
    batch: int | None = None
    final_size: int | None = None
    masks: Mapping[str, str] = field(default_factory=dict)
    transform: Callable[[nn.Module, Mapping[str, Tensor]], nn.Module] | None = None
    float64_tolerance: float = 1e-8
    only_float64: str = ""


@dataclass(frozen=True)
class Counted:
    """Costs of a full-size configuration, for which there is no checkpoint.

    Attributes:
        name: Which one.
        count: Computes the costs.
        official: What the system's own counter says.
        tolerance: Relative.
    """

    name: str
    count: Callable[[], Mapping[str, float]]
    official: Mapping[str, float]
    tolerance: float = 1e-9


def read_fixture(folder: Path) -> dict[str, Any]:
    """The description of a folder."""
    return dict(json.loads((folder / "fixture.json").read_text()))
