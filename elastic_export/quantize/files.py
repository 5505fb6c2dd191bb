"""The record on disk: ``record.json`` beside one safetensors file that holds every ``amax``.

The tensor file carries its digest in its name and ``record.json`` is replaced last, in one step.
Whoever reads, even while another process writes or after it was killed, sees the old record or the
new one, never a mixture.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from elastic_export.artifacts.files import write_atomically
from elastic_export.config.base import Schema
from elastic_export.errors import UserError
from elastic_export.quantize.placement import placement_rules
from elastic_export.quantize.record import (
    LAYER_ROLES,
    PRODUCT_ROLES,
    Policy,
    QuantizationRecord,
    Role,
    Site,
)

__all__ = ["load_record", "save_record"]

SCHEMA_VERSION = 2
RECORD = "record.json"
AGAIN = "Run the quantize stage again, or point to the folder it wrote."

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _SiteFile(Schema):
    module: str
    role: Role
    min: Finite
    max: Finite
    axis: int | None
    policy: Policy
    reason: str
    rule: str


class _RecordFile(Schema):
    schema_version: int
    calibrator: str
    images: Annotated[int, Field(ge=0)]
    data_digest: str
    model_digest: str
    amax_file: Annotated[str, Field(pattern=r"^amax-[0-9a-f]{64}\.safetensors$")]
    sites: tuple[_SiteFile, ...]


def save_record(record: QuantizationRecord, folder: Path) -> None:
    """Write ``record`` into ``folder``, which is made where it is missing.

    Raises:
        UserError: the disk is full or the folder cannot be written; an older record in the folder
            stays readable.
    """
    tensors = {_key(site.module, site.role): site.amax for site in record.sites.values()}
    blob = save_tensors(tensors)
    name = f"amax-{hashlib.sha256(blob).hexdigest()}.safetensors"
    head = _RecordFile(
        schema_version=SCHEMA_VERSION,
        calibrator=record.calibrator,
        images=record.images,
        data_digest=record.data_digest,
        model_digest=record.model_digest,
        amax_file=name,
        sites=tuple(
            _SiteFile(
                module=site.module,
                role=site.role,
                min=site.min,
                max=site.max,
                axis=site.axis,
                policy=site.policy,
                reason=site.reason,
                rule=site.rule,
            )
            for site in record.sites.values()
        ),
    )
    write_atomically(folder / name, blob)
    write_atomically(folder / RECORD, (head.model_dump_json(indent=1) + "\n").encode())
    for old in folder.glob("amax-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_record(folder: Path) -> QuantizationRecord:
    """Read the record in ``folder`` and check it.

    Raises:
        UserError: a file is missing or damaged, the schema version is foreign, a range is not
            finite or not a range, a site is there twice or not at all, or a rule is unknown.
    """
    head = _read_head(folder)
    amax = _read_amax(folder / head.amax_file)
    sites: dict[tuple[str, str], Site] = {}
    for entry in head.sites:
        where = f"the {entry.role} of {entry.module} in {folder}"
        if (entry.module, entry.role) in sites:
            raise UserError(f"The quantization record holds {where} twice.", AGAIN)
        values = amax.get(_key(entry.module, entry.role))
        if values is None:
            raise UserError(f"The quantization record has no amax for {where}.", AGAIN)
        site = Site(
            entry.module,
            entry.role,
            entry.min,
            entry.max,
            values,
            entry.axis,
            entry.policy,
            entry.reason,
            entry.rule,
        )
        problem = _problem(site)
        if problem:
            raise UserError(f"The quantization record holds {problem} for {where}.", AGAIN)
        sites[(entry.module, entry.role)] = site
    surplus = sorted(amax.keys() - {_key(module, role) for module, role in sites})
    if surplus:
        raise UserError(f'{folder / head.amax_file} holds "{surplus[0]}" for no site.', AGAIN)
    record = QuantizationRecord(
        sites, head.calibrator, head.images, head.data_digest, head.model_digest
    )
    _check_complete(record, folder)
    return record


def _check_complete(record: QuantizationRecord, folder: Path) -> None:
    """Make sure that every layer and every attention has all of its sites."""
    skips = [module for module, role in record.sites if role == "skip"]
    wanted = [(name, LAYER_ROLES) for name in [*record.modules(), *skips]]
    wanted += [(name, PRODUCT_ROLES) for name in record.attentions()]
    for name, roles in wanted:
        missing = [role for role in roles if (name, role) not in record.sites]
        if missing:
            raise UserError(
                f"The quantization record in {folder} misses the {missing[0]} of {name}.", AGAIN
            )


def _key(module: str, role: str) -> str:
    return f"{module}:{role}"


def _read_head(folder: Path) -> _RecordFile:
    path = folder / RECORD
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"There is no quantization record at {path}.", AGAIN) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a record: {error}.", AGAIN) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"The quantization record {path} has schema version {version}, "
            f"this release reads {SCHEMA_VERSION}.",
            "Run the quantize stage again with this release.",
        )
    try:
        return _RecordFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"The quantization record {path} is damaged at {where}: {first['msg']}.", AGAIN
        ) from error


def _read_amax(path: Path) -> dict[str, np.ndarray]:
    try:
        blob = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"The quantization record misses its file {path}.", AGAIN) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", AGAIN) from error
    if path.name != f"amax-{hashlib.sha256(blob).hexdigest()}.safetensors":
        raise UserError(f"{path} was changed after it was written.", AGAIN)
    try:
        return dict(load_tensors(blob))
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}.", AGAIN) from error


def _problem(site: Site) -> str:
    """Say what is wrong with the numbers of a site, or nothing."""
    if site.amax.dtype != np.float32:
        return f"amax of type {site.amax.dtype}"
    if site.axis not in (None, 0) or (site.axis == 0 and site.role != "weight"):
        return f"the axis {site.axis}"
    if site.amax.ndim != (0 if site.axis is None else 1):
        return f"amax of shape {site.amax.shape} with axis {site.axis}"
    if not np.all(np.isfinite(site.amax)) or np.any(site.amax < 0):
        return "an amax that is not a finite, non-negative number"
    if site.min > site.max:
        return f"a minimum {site.min} above its maximum {site.max}"
    if (site.policy == "float") != bool(site.reason) or (site.rule and not site.reason):
        return f'the policy {site.policy} with the reason "{site.reason}"'
    unknown = sorted(site.rules - placement_rules().rules.keys())
    if unknown:
        return f'the placement rule "{unknown[0]}", which this release does not know,'
    return ""
