"""What a run leaves behind, as data: measurements, rows of the final table, the whole report."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from elastic_export.config.base import Schema

__all__ = [
    "Accuracy",
    "BuildResult",
    "BundleResult",
    "Cost",
    "DescendantResult",
    "Latency",
    "LatencyEstimate",
]


class Latency(Schema):
    """One settled (or inconclusive) measurement; times in milliseconds for one batch.

    Attributes that only a board has: ``on`` (where it was measured; None is this machine),
    ``compute_ms`` (median of the GPU's part), ``energy_mj`` (of one batch, net of idle where that
    is known, as ``energy_is`` says), ``marks`` (what makes the figure doubtful, in the words of the
    board's script). ``machine`` describes the machine or the board.
    """

    runner: str
    precision: str
    batch_size: int
    threads: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    cov: float
    samples: int
    runs: int
    settled: bool
    unsettled_because: str = ""
    on: str | None = None
    compute_ms: float | None = None
    energy_mj: float | None = None
    energy_is: Literal["", "net of idle", "with idle"] = ""
    marks: tuple[str, ...] = ()
    machine: dict[str, Any] = Field(default_factory=dict)

    @property
    def status(self) -> str:
        """Say ``settled`` or ``inconclusive``, the words of every table."""
        return "settled" if self.settled else "inconclusive"


class Accuracy(Schema):
    """Top-1 in percent on a named split, and what was run to get it.

    ``how`` is ``deployed`` when the artifact ran on the runtime it is meant for, ``emulated`` when
    the same flavour ran in ONNX Runtime because the device is absent.
    """

    top1: float
    images: int
    split: str
    runner: str
    how: Literal["deployed", "emulated"]


class Cost(Schema):
    """Costs of one descendant; MACs follow the convention of ``docs/architecture.md``."""

    macs: int
    algorithmic_macs: int
    hardware_macs: int
    params: int


class LatencyEstimate(Schema):
    """What a file would take on a device that was not measured; never shown without its range.

    Milliseconds of one batch, between ``low_ms`` and ``high_ms``; ``basis`` tells what the
    constants behind it were fitted to.
    """

    ms: float
    low_ms: float
    high_ms: float
    basis: str


class BundleResult(Schema):
    """One descendant on one target.

    ``files`` maps a precision to the file's path relative to the bundle folder; ``bytes`` to its
    size. ``latency`` holds what was measured: on this machine where the target is this machine, on
    a board where the recipe names one. ``estimate`` stands where nothing was measured of a GPU.
    ``hardware_macs`` is what this target executes of the sparse network, ``executed_macs`` what it
    does of each file (FP32 may be dense). ``engines`` tells of each compiled engine,
    ``notes`` why something is absent.
    """

    target: str
    folder: str
    files: dict[str, str]
    bytes: dict[str, int]
    accuracy: dict[str, Accuracy]
    latency: dict[str, Latency] = Field(default_factory=dict)
    estimate: dict[str, LatencyEstimate] = Field(default_factory=dict)
    hardware_macs: int | None = None
    executed_macs: dict[str, int] = Field(default_factory=dict)
    chosen: str | None = None
    chosen_because: str = ""
    engines: dict[str, dict[str, Any]] = Field(default_factory=dict)
    checks: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class DescendantResult(Schema):
    """One row of the final table before it is spread over targets.

    ``cost.macs`` counts dense MACs, ``algorithmic_macs`` an N:M layer as N/M, ``hardware_macs``
    what a 2:4 capable device really skips. ``accuracy`` maps ``fp32``, ``2:4`` and ``int8`` to
    what was measured in ONNX Runtime on the test split. ``quantization`` is what the quantize stage
    tells: ``calibrator`` and ``images``, and where they ran ``smoothed``, ``qat``, ``guard`` (with
    the layers returned to floating point) and ``placement`` (with every race).
    """

    name: str
    spec_id: str
    spec: dict[str, Any]
    cost: Cost
    accuracy: dict[str, Accuracy]
    search_accuracy: float | None = None
    quantization: dict[str, Any] = Field(default_factory=dict)
    bundles: tuple[BundleResult, ...] = ()


class BuildResult(Schema):
    """Everything ``report`` needs: it reads this file and nothing else."""

    schema_version: Literal[1] = 1
    name: str
    created: str
    recipe: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    dataset: dict[str, Any]
    supernet: dict[str, Any]
    descendants: tuple[DescendantResult, ...]
    stages: tuple[dict[str, Any], ...]
    wall_seconds: float
