"""What boards measured, kept for each target, and the constants that follow from all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from elastic_export.artifacts.files import write_atomically
from elastic_export.artifacts.locks import KeyLocks
from elastic_export.config.base import Schema
from elastic_export.config.fused_layer import FusedLayer
from elastic_export.config.target import Precision
from elastic_export.config.target_files import user_folder
from elastic_export.errors import UserError
from elastic_export.measure.device_fit import DeviceFit, Measurement, fit
from elastic_export.measure.estimate import CLASSES, Basis, Constants
from elastic_export.measure.kernel_costs import Device

__all__ = ["fit_file", "fitted_basis", "learn", "load_fit"]

MOST = 100
"""Measurements that are kept for a target; the oldest go first."""

Positive = Annotated[float, Field(gt=0, lt=float("inf"))]


class _Constants(Schema):
    tensor: Positive
    int8: Positive
    lanes: Positive
    memory: Positive
    floor: Positive


class _Measurement(Schema):
    name: str
    digest: str
    precision: Precision
    ms: Positive
    layers: tuple[FusedLayer, ...]


class _KeptFit(Schema):
    """The file: what was measured, and the fit to it, which takes a while to find."""

    schema_version: Literal[2] = 2
    identity: str
    day: str
    constants: _Constants
    scale: Positive
    error: Annotated[float, Field(ge=0)]
    measurements: tuple[_Measurement, ...]


def learn(new: Sequence[Measurement], device: Device) -> DeviceFit:
    """Add measurements to those of a target, fit its constants anew, and keep both.

    A file that was measured before counts with its last figure alone.

    Args:
        new: What was measured; every later estimate of the target uses it.
        device: The target, in its power mode.

    Raises:
        UserError: There is nothing to fit, what is kept is damaged, or the folder cannot be
            written.
    """
    file = fit_file(device.identity)
    with KeyLocks(file.parent, lambda name: None).hold(file.stem):
        return _learn(new, device)


def _learn(new: Sequence[Measurement], device: Device) -> DeviceFit:
    kept = _read(device.identity)
    before = () if kept is None else kept.measurements
    every = {(m.digest, m.precision): m for m in before}
    for one in new:
        every.pop((one.digest, one.precision), None)
        every[one.digest, one.precision] = _Measurement(
            name=one.name,
            digest=one.digest,
            precision=one.precision,
            ms=one.ms,
            layers=tuple(one.layers),
        )
    measurements = tuple(every.values())[-MOST:]
    found = fit([_plain(one) for one in measurements], device)
    state = _KeptFit(
        identity=found.identity,
        day=found.day,
        constants=_Constants(**asdict(found.constants)),
        scale=found.scale,
        error=found.error,
        measurements=measurements,
    )
    text = json.dumps(state.model_dump(mode="json"), indent=1, sort_keys=True)
    write_atomically(fit_file(device.identity), text.encode())
    return found


def load_fit(identity: str) -> DeviceFit | None:
    """Read the fit of a target, if there is one.

    Raises:
        UserError: The file is damaged.
    """
    kept = _read(identity)
    if kept is None:
        return None
    return DeviceFit(
        identity=kept.identity,
        day=kept.day,
        models=tuple(one.name for one in kept.measurements),
        constants=Constants(**kept.constants.model_dump()),
        scale=kept.scale,
        error=kept.error,
    )


def fitted_basis(device: Device) -> Basis:
    """Return the board's own constants if it was measured, else those of its class."""
    found = load_fit(device.identity)
    return CLASSES[device.family] if found is None else found.basis


def fit_file(identity: str) -> Path:
    """Return where the fit of a target is kept: ``fits`` beside the user's own profiles."""
    name = re.sub(r"[^A-Za-z0-9._@-]", "+", identity)
    return user_folder() / "fits" / f"{name}.json"


def _read(identity: str) -> _KeptFit | None:
    path = fit_file(identity)
    if not path.is_file():
        return None
    try:
        text = path.read_bytes()
        if b'"measurements"' not in text and json.loads(text).get("schema_version") == 1:
            return None  # of a version that kept constants alone, which later fits cannot build on
        kept = _KeptFit.model_validate_json(text)
        if kept.identity != identity:
            raise ValueError(f"it is of {kept.identity}")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"The fit {path} cannot be read ({str(error).splitlines()[0]}).",
            "Delete it; the estimate then uses the constants of the device's class.",
        ) from error
    return kept


def _plain(kept: _Measurement) -> Measurement:
    return Measurement(kept.name, kept.layers, kept.precision, kept.ms, kept.digest)
