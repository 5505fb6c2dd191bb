"""The latency of a network on a GPU that is not here: an estimate, never a measurement.

A kernel takes ``max(arithmetic / efficiency, traffic / efficiency) + floor``. Ideal arithmetic and
traffic come from the layer and the target's figures (``kernel_costs``); the efficiencies and the
floor are constants of a class of devices, fitted to published latencies
(``benchmarks/estimate_anchors.py``), or of a board that was measured (``device_fit``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from elastic_export.config.fused_layer import FusedLayer
from elastic_export.config.target import Precision
from elastic_export.errors import UserError
from elastic_export.measure.kernel_costs import Cost, Device, DeviceClass, kernel_costs

__all__ = ["CLASSES", "MOST_2_4", "Basis", "Constants", "Estimate", "LayerTime", "estimate"]

MOST_2_4 = 1.15
"""No network as a whole is taken to gain more from 2:4: measured gains lie at 1.00 to 1.15."""


@dataclass(frozen=True)
class Constants:
    """What a class of devices reaches.

    Attributes:
        tensor: Share of the FP16 (TF32, FP32) peak that large tiles reach.
        int8: Share of the INT8 peak.
        lanes: Share of the ordinary lanes' rate in grouped convolutions.
        memory: Share of the bandwidth.
        floor: Thousand clock cycles that any kernel takes beside its work: its start, its end,
            and the wait for the one before.
    """

    tensor: float
    int8: float
    lanes: float
    memory: float
    floor: float


@dataclass(frozen=True)
class Basis:
    """Constants and how far to trust them.

    Attributes:
        constants: The constants.
        low: The lower end of the range over the estimate.
        high: The upper end over the estimate.
        text: What they were fitted to, for people.
        scale: What every time is multiplied by.
    """

    constants: Constants
    low: float
    high: float
    text: str
    scale: float = 1.0


@dataclass(frozen=True)
class LayerTime:
    """One kernel of an estimate; the bound is what takes the larger part of its time."""

    name: str
    kind: str
    ms: float
    bound: str
    macs: int


@dataclass(frozen=True)
class Estimate:
    """What a network would take for one batch, in milliseconds.

    Attributes:
        ms: The estimate.
        low_ms: Where the true latency probably is not below.
        high_ms: Where it probably is not above.
        dense_ms: The same if no layer held 2:4.
        shares: Of the time, by what bounds it: ``compute``, ``memory``, ``launch``.
        kernels: How many are started.
        layers: Every kernel.
        basis: What the constants were fitted to.
    """

    ms: float
    low_ms: float
    high_ms: float
    dense_ms: float
    shares: dict[str, float]
    kernels: int
    layers: tuple[LayerTime, ...]
    basis: str

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, labelled."""
        return {"how": "estimate", **asdict(self)}


def estimate(
    layers: Sequence[FusedLayer], device: Device, precision: Precision, basis: Basis | None = None
) -> Estimate:
    """Estimate one network in one precision.

    Args:
        layers: What ``fused_layers`` read.
        device: Where it would run.
        precision: Of the file: in ``int8`` the layers that may be are, the rest is FP16.
        basis: Constants; those of the device's class unless given.

    Raises:
        UserError: The device does not run that precision.
    """
    if precision not in device.precisions or precision not in device.rates:
        known = ", ".join(p for p in device.precisions if p in device.rates)
        raise UserError(
            f"{device.identity} does not run {precision.upper()}.", f"Choose {known} there."
        )
    basis = basis or CLASSES[device.family]
    costs = kernel_costs(layers, device, precision, sparse=False)
    skipping = kernel_costs(layers, device, precision, sparse=True)
    dense = [_times(cost, device, basis) for cost in costs]
    zeros = [_times(cost, device, basis) for cost in skipping]
    # The builder times both and takes the faster one.
    best = [min(pair, key=sum) for pair in zip(dense, zeros, strict=True)]
    before, after = sum(map(sum, dense)), sum(map(sum, best))
    saved = before - after
    part = min(1.0, before * (1 - 1 / MOST_2_4) / saved) if saved > 0 else 0.0
    parts = [
        tuple(d - part * (d - b) for d, b in zip(*pair, strict=True))
        for pair in zip(dense, best, strict=True)
    ]
    total = sum(map(sum, parts))
    names = ("compute", "memory", "launch")
    shares = {name: sum(p[i] for p in parts) / total for i, name in enumerate(names)}
    rows = tuple(
        LayerTime(layer.name, layer.kind, sum(p), names[p.index(max(p))], layer.macs)
        for layer, p in zip(layers, parts, strict=True)
    )
    launches = sum(cost.launches for cost in costs)
    bounds = (total, total * basis.low, total * basis.high)
    return Estimate(*bounds, before, shares, launches, rows, basis.text)


def _times(cost: Cost, device: Device, basis: Basis) -> tuple[float, float, float]:
    """Return milliseconds of compute or memory, whichever is longer, and of the launch."""
    c = basis.constants
    reached = {"tensor": c.tensor, "int8": c.int8, "lanes": c.lanes, "none": 1.0}[cost.unit]
    compute, memory = cost.compute_s / reached, cost.memory_s / c.memory
    floor = cost.launches * c.floor * 1e-6 / device.launches_ghz
    work = (compute, 0.0, floor) if compute >= memory else (0.0, memory, floor)
    first, second, third = (1000 * basis.scale * seconds for seconds in work)
    return first, second, third


CLASSES: dict[DeviceClass, Basis] = {
    "gpu": Basis(
        Constants(tensor=0.456, int8=0.405, lanes=0.3, memory=0.933, floor=2.53),
        *(0.75, 1.33, "fitted to 66 published figures of A100, A10 and L4"),
    ),
    "jetson": Basis(
        Constants(tensor=0.326, int8=0.293, lanes=0.289, memory=0.47, floor=14.4),
        *(0.88, 1.44, "fitted to 12 published figures of AGX Orin and Orin Nano"),
    ),
    "nano": Basis(
        Constants(tensor=1.15, int8=0.5, lanes=0.3, memory=0.111, floor=13.9),
        *(0.83, 1.21, "fitted to 15 published figures of the Jetson Nano of 2019"),
    ),
}
"""Fitted by ``benchmarks/estimate_anchors.py``; the ranges are those of its left-out estimates.

They make up for what the model leaves out, so not each of them is a share that hardware reaches:
on the Nano, 3x3 convolutions in Winograd form count as a high rate, and slow element-wise kernels
as little bandwidth.
"""
