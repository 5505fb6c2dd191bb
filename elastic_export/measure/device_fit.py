"""Fit the constants of the estimate to measurements (``kept_fits`` keeps them for a board)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from elastic_export.config.fused_layer import FusedLayer
from elastic_export.config.target import Precision
from elastic_export.errors import UserError
from elastic_export.measure.estimate import CLASSES, Basis, Constants
from elastic_export.measure.kernel_costs import Device, kernel_costs

__all__ = ["DeviceFit", "Measurement", "fit", "fit_constants", "predicted"]

Array = NDArray[np.float64]
_UNITS = ("tensor", "int8", "lanes")
_SPREAD = 0.7
"""How far constants are expected from where they start, in units of the natural logarithm."""
_NOISE = 0.05
_ROUNDS = 60
_LEAST_RANGE, _FEW_RANGE = 0.10, 0.30


@dataclass(frozen=True)
class Measurement:
    """One model that was measured.

    Attributes:
        name: For people.
        layers: Its kernels.
        precision: Of the file.
        ms: The median.
        digest: SHA-256 of the file; the same file measured again replaces what was known.
    """

    name: str
    layers: Sequence[FusedLayer]
    precision: Precision
    ms: float
    digest: str = ""


@dataclass(frozen=True)
class DeviceFit:
    """What measurements of one target say of it.

    Attributes:
        identity: The target in full.
        day: When it was fitted, ``2026-11-24``.
        models: What was measured, each as ``NETWORK/PRECISION``.
        constants: The constants.
        scale: What every time is multiplied by.
        error: The largest difference left between fit and measurements, as a share.
    """

    identity: str
    day: str
    models: tuple[str, ...]
    constants: Constants
    scale: float
    error: float

    @property
    def basis(self) -> Basis:
        """Return it for ``estimate``; no range is narrower than ten percent, or than the error.

        One or two networks say little of others, in however many precisions they were measured, so
        their range stays about that of a class of devices.
        """
        networks = {name.rpartition("/")[0] for name in self.models}
        wide = max(_LEAST_RANGE, 2 * self.error) if len(networks) > 2 else _FEW_RANGE
        count = len(self.models)
        text = f"fitted to {count} measurement{'s' if count > 1 else ''} of {self.day}"
        return Basis(self.constants, 1 / (1 + wide), 1 + wide, text, self.scale)


def fit(measurements: Sequence[Measurement], device: Device) -> DeviceFit:
    """Fit a device to what was measured on it.

    One model scales the constants of its class; more move each constant as far as they say
    something of it, and leave the others where the class has them.

    Raises:
        UserError: There is no measurement, or one is no positive number.
    """
    if not measurements or any(not 0 < m.ms < 1e7 for m in measurements):
        raise UserError(
            f"There is no usable measurement of {device.identity}.",
            "Measure at least one bundle there: elastic-export bench BUNDLE --on USER@BOARD.",
        )
    start = CLASSES[device.family].constants
    problem = [(device, m) for m in measurements]
    if len(measurements) == 1:
        constants, scale = start, measurements[0].ms / predicted(problem, start)[0]
    else:
        constants, scale = fit_constants(problem, start), 1.0
    ratios = scale * predicted(problem, constants) / np.array([m.ms for m in measurements])
    error = float(np.abs(np.log(ratios)).max())
    names = tuple(m.name for m in measurements)
    return DeviceFit(device.identity, date.today().isoformat(), names, constants, scale, error)


def fit_constants(
    problem: Sequence[tuple[Device, Measurement]],
    start: Constants,
    *,
    noise: float = _NOISE,
    spread: float = _SPREAD,
) -> Constants:
    """Find the most probable constants: differences of ``noise``, constants ``spread`` from start.

    Both are in units of the natural logarithm. Differences beyond two ``noise`` count linearly, so
    that one wrong figure does not rule. Damped Gauss-Newton steps on the logarithms.
    """
    terms = [_Terms(device, measured) for device, measured in problem]
    wanted = np.log([measured.ms for _, measured in problem])
    begin = np.log(np.array(list(asdict(start).values())))
    at, damping = begin.copy(), 1e-2
    loss, residual = _loss(terms, wanted, at, begin, noise, spread)
    for _ in range(_ROUNDS):
        slope = np.stack(
            [
                (_all(terms, at + step) - _all(terms, at - step)) / 0.02
                for step in 0.01 * np.eye(len(at))
            ],
            axis=1,
        )
        weight = np.minimum(1.0, 2 * noise / np.maximum(np.abs(residual), 1e-12)) / noise**2
        square = slope.T @ (weight[:, None] * slope) + np.eye(len(at)) / spread**2
        downhill = -slope.T @ (weight * residual) - (at - begin) / spread**2
        step = np.linalg.solve(square + damping * np.diag(np.diag(square)), downhill)
        tried = at + np.clip(step, -0.5, 0.5)
        less, left = _loss(terms, wanted, tried, begin, noise, spread)
        if less < loss:
            done = loss - less < 1e-9 * max(loss, 1.0)
            at, loss, residual, damping = tried, less, left, damping / 3
            if done:
                break
        else:
            damping *= 4
            if damping > 1e6:
                break
    return Constants(*(float(value) for value in np.exp(at)))


def predicted(problem: Sequence[tuple[Device, Measurement]], constants: Constants) -> Array:
    """Estimate every measurement, in milliseconds."""
    at = np.log(np.array(list(asdict(constants).values())))
    found: Array = np.exp(_all([_Terms(device, measured) for device, measured in problem], at))
    return found


class _Terms:
    """The ideal costs of one measured network as arrays, so that trying constants is cheap."""

    def __init__(self, device: Device, measured: Measurement) -> None:
        costs = kernel_costs(measured.layers, device, measured.precision, sparse=True)
        self.units = np.array([_index(cost.unit) for cost in costs])
        self.compute = np.array([cost.compute_s for cost in costs])
        self.memory = np.array([cost.memory_s for cost in costs])
        self.cycles = sum(cost.launches for cost in costs) * 1e-6 / device.launches_ghz

    def log_ms(self, values: Array) -> float:
        """Return the logarithm of the estimate for tensor, int8, lanes, (none), memory, floor."""
        reached = np.append(values[:3], 1.0)[self.units]
        work = np.maximum(self.compute / reached, self.memory / values[3]).sum()
        return float(np.log(1000 * (work + self.cycles * values[4])))


def _index(unit: str) -> int:
    return _UNITS.index(unit) if unit in _UNITS else len(_UNITS)


def _all(terms: Sequence[_Terms], at: Array) -> Array:
    values = np.exp(at)
    return np.array([term.log_ms(values) for term in terms])


def _loss(
    terms: Sequence[_Terms],
    wanted: Array,
    at: Array,
    begin: Array,
    noise: float,
    spread: float,
) -> tuple[float, Array]:
    residual = _all(terms, at) - wanted
    size = np.abs(residual) / noise
    huber = np.where(size < 2, size**2 / 2, 2 * size - 2).sum()
    return float(huber + ((at - begin) ** 2).sum() / (2 * spread**2)), residual
