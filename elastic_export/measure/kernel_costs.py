"""What each kernel costs on ideal hardware: seconds of arithmetic and of memory traffic.

Efficiencies and launch costs come later (``estimate``); nothing here is fitted, so that a fit need
not look at a layer twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from elastic_export.config.dla import without_dla
from elastic_export.config.fused_layer import FusedLayer
from elastic_export.config.peaks import find_figure, peak_rates
from elastic_export.config.target import Precision
from elastic_export.config.targets import ResolvedTarget
from elastic_export.errors import UserError

__all__ = ["TURING", "Cost", "Device", "DeviceClass", "device_of", "kernel_costs"]

DeviceClass = Literal["gpu", "jetson", "nano"]
Unit = Literal["tensor", "int8", "lanes", "none"]

TURING = 75
"""The compute capability (times ten) from which TensorRT fuses attentions and any activation."""

# Output tiles of common kernels; each may lie on its side. A tile of TM x TN loads TM + TN values
# for TM * TN products, so small ones wait for their operands more, and the more the faster the
# products are: shared memory gives 128 bytes a clock on every architecture, which at 1024 FP16
# products a clock is 16 * (1/TM + 1/TN); half as much again is taken for what does not overlap.
_TILES = ((256, 128), (128, 128), (128, 64), (64, 64), (64, 32), (32, 32))
_OPERANDS, _OPERANDS_AT = 24.0, 1024 * 2
_SPLITS = (1, 2, 4, 8)
_SPLIT_COST = 32
_STEP = {"fp32": 8, "fp16": 16, "int8": 32}
_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_CACHE_SHARE, _CACHE_SPEED = 0.5, 3.0
_GROUPED = 16
# Sparse tensor cores do twice the work; kernels of large layers show about 1.6 of it. An index of
# two bits goes with each of the values that stay.
_SPARSE_SPEED = 1.6
_SPARSE_BYTES = {"fp32": 1.0, "fp16": 0.5625, "int8": 0.625}
_NO_QUANTIZER = ("attention", "movement", "softmax", "product")


@dataclass(frozen=True)
class Device:
    """The figures of a target that an estimate needs.

    Attributes:
        identity: The target in full.
        family: Whose constants hold for it.
        sms: Multiprocessors that are on.
        clock_ghz: Clock of the GPU in the power mode.
        rates: Dense 10^12 operations per second by precision: tensor cores where there are any
            (FP32 as TF32 from compute capability 8.0 on, which TensorRT uses by itself).
        lanes: The same without tensor cores.
        bandwidth_gbs: Memory, 10^9 bytes per second.
        l2_mb: Level-2 cache; 0 where it is not known.
        sparse: Whether 2:4 is skipped.
        precisions: What it runs.
        unverified: Figures among these that no second source confirms.
        launch_clock_ghz: Clock that launches are counted in, where that is another.
    """

    identity: str
    family: DeviceClass
    sms: float
    clock_ghz: float
    rates: dict[Precision, float]
    lanes: float
    bandwidth_gbs: float
    l2_mb: float
    sparse: bool
    precisions: tuple[Precision, ...]
    unverified: tuple[str, ...] = ()
    launch_clock_ghz: float | None = None

    @property
    def launches_ghz(self) -> float:
        """The clock that launches are counted in."""
        return self.launch_clock_ghz or self.clock_ghz


@dataclass(frozen=True)
class Cost:
    """One kernel: ideal seconds on a unit, ideal seconds of memory, and how many launches."""

    unit: Unit
    compute_s: float
    memory_s: float
    launches: int = 1


def device_of(found: ResolvedTarget) -> Device:
    """Read the figures of a target in its power mode.

    Raises:
        UserError: It is no GPU but a host or a DLA, or a figure that the estimate needs is missing.
    """
    target, mode = found.target, found.power_mode
    if target.kind == "host" or target.sm is None:
        raise UserError(
            f"{found.identity} is no GPU, and only GPUs are estimated.",
            "Measure on this machine instead: elastic-export bench BUNDLE.",
        )
    if found.dla is not None:
        raise UserError(
            f"{found.identity} runs on a DLA, which is not modelled.",
            f"Estimate the board's GPU as {without_dla(found.identity)}, or measure on the board: "
            "elastic-export bench BUNDLE --on USER@BOARD.",
        )
    names = ("sms", "boost_ghz", "bandwidth_gbs", "l2_mb")
    figures = {name: find_figure(target, name, mode) for name in names}
    missing = [name for name in names[:3] if figures[name] is None]
    rates = peak_rates(target, mode)
    if missing or not rates:
        lacking = " and ".join(missing) or "peak rates of its compute capability"
        raise UserError(
            f"The target {found.identity} has no {lacking}, and an estimate needs them.",
            "Give the figures in a profile of your own (targets/README.md), or choose a power "
            "mode that has them.",
        )
    values = {name: figure.value for name, figure in figures.items() if figure is not None}
    tensor_cores = target.sm >= 70
    fp32 = rates["fp16"] / 2 if target.sm >= 80 else rates["fp32"]
    by_precision: dict[Precision, float] = {"fp32": fp32, "fp16": rates["fp16"]}
    if "int8" in rates:
        by_precision["int8"] = rates["int8"]
    family: DeviceClass = "gpu" if target.kind == "gpu" else "jetson" if tensor_cores else "nano"
    return Device(
        identity=found.identity,
        family=family,
        sms=values["sms"],
        clock_ghz=values["boost_ghz"],
        rates=by_precision,
        lanes=rates["fp32"] if tensor_cores else rates["fp16"],
        bandwidth_gbs=values["bandwidth_gbs"],
        l2_mb=values.get("l2_mb", 0.0),
        sparse=target.sparse_2_4,
        precisions=tuple(found.flavours),
        unverified=tuple(n for n, f in figures.items() if f is not None and not f.verified),
    )


def kernel_costs(
    layers: Sequence[FusedLayer], device: Device, precision: Precision, *, sparse: bool
) -> list[Cost]:
    """Cost every layer in the precision that the flavour gives it.

    In an INT8 file the layers that may be are INT8, the rest is FP16. Their producers write INT8
    where only INT8 layers read; an attention or a movement in front of one needs a kernel more,
    which quantizes.

    Args:
        layers: Of one network.
        device: Where.
        precision: Of the file.
        sparse: Count layers that hold 2:4 as sparse kernels.
    """
    rest: Precision = "fp32" if precision == "fp32" else "fp16"
    chosen: list[Precision] = [
        "int8" if precision == "int8" and layer.int8 else rest for layer in layers
    ]
    readers: dict[int, list[bool]] = {}
    for layer, kind in zip(layers, chosen, strict=True):
        for place, read in enumerate(layer.reads):
            quantized = kind == "int8" and _reads_int8(layer, place)
            readers.setdefault(read.layer, []).append(quantized)
    weights = sum(layer.weights * _BYTES[kind] for layer, kind in zip(layers, chosen, strict=True))
    found = []
    for index, (layer, kind) in enumerate(zip(layers, chosen, strict=True)):
        zeros = sparse and device.sparse and layer.sparse and kind != "fp32"
        unit, seconds = _arithmetic(layer, device, kind)
        seconds /= _SPARSE_SPEED if zeros else 1.0
        stored = layer.weights * _BYTES[kind] * (_SPARSE_BYTES[kind] if zeros else 1.0)
        moved = _traffic(stored, max(weights, 1), device)
        for place, read in enumerate(layer.reads):
            size = 1 if kind == "int8" and _reads_int8(layer, place) else _BYTES[rest]
            moved += _traffic(read.elements * size, read.elements * size, device)
        wanted = readers.get(index, [])
        size = _BYTES[rest] if not (wanted and all(wanted)) else 1
        launches = 1
        if any(wanted) and layer.kind in _NO_QUANTIZER:
            size, launches = 2 * _BYTES[rest] + 1, 2
        elif any(wanted) and not all(wanted):
            size += 1
        written = layer.output * size
        moved += _traffic(written, written, device)
        found.append(Cost(unit, seconds, moved, launches))
    return found


def _reads_int8(layer: FusedLayer, place: int) -> bool:
    """A product quantizes what it multiplies; a convolution's residual is quantized too."""
    return layer.kind == "conv" or place == len(layer.reads) - 1


def _arithmetic(layer: FusedLayer, device: Device, kind: Precision) -> tuple[Unit, float]:
    """Return the unit and the ideal seconds, tiles and waves counted."""
    if layer.macs == 0:
        return "none", 0.0
    if layer.kind == "attention":
        # Rows of 64 queries against all keys; both products stay on the chip.
        rate = device.rates[kind] * 1e12 / device.sms / 2
        blocks = layer.groups * ceil(layer.m / 64)
        each = 64.0 * (ceil(layer.n / 16) * 16) * 2 * layer.k
        each *= _waiting(64, 64, _pressure(device, kind))
        return "tensor", ceil(blocks / device.sms) * each / rate
    if layer.kind == "conv" and layer.groups > 1 and min(layer.n, layer.k) < _GROUPED:
        return "lanes", 2 * layer.macs / (device.lanes * 1e12)
    rate = device.rates[kind] * 1e12 / device.sms / 2
    return ("int8" if kind == "int8" else "tensor"), _tiled(layer, device, kind) / rate


def _tiled(layer: FusedLayer, device: Device, kind: Precision) -> float:
    """Return the multiply-adds that the busiest multiprocessor has time for, with the best tile."""
    best = float("inf")
    step, pressure = _STEP[kind], _pressure(device, kind)
    for tm, tn in {(a, b) for tile in _TILES for a, b in (tile, tile[::-1])}:
        blocks = layer.groups * ceil(layer.m / tm) * ceil(layer.n / tn)
        for split in _SPLITS:
            depth = ceil(layer.k / split / step) * step + (_SPLIT_COST if split > 1 else 0)
            waves = ceil(blocks * split / device.sms)
            best = min(best, waves * tm * tn * depth * _waiting(tm, tn, pressure))
    return best


def _pressure(device: Device, kind: Precision) -> float:
    """How many bytes a clock the products of a multiprocessor ask for, over ``_OPERANDS_AT``."""
    products = device.rates[kind] * 1000 / device.sms / device.clock_ghz / 2
    return products * _BYTES[kind] / _OPERANDS_AT


def _waiting(tm: int, tn: int, pressure: float) -> float:
    """How much longer a tile takes than its products alone."""
    return 1 + _OPERANDS * pressure * (1 / tm + 1 / tn)


def _traffic(size: float, working_set: float, device: Device) -> float:
    """Ideal seconds to move bytes, of which the cache holds what fits of their working set."""
    resident = min(1.0, _CACHE_SHARE * device.l2_mb * 2**20 / working_set) if working_set else 0.0
    effective = size * (1 - resident + resident / _CACHE_SPEED)
    return effective / (device.bandwidth_gbs * 1e9)
