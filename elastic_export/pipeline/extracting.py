"""Extract one descendant by itself; loads no more than that takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elastic_export.checkpoints import import_supernet, save_descendant
from elastic_export.config.recipe import DataConfig
from elastic_export.config.result import Cost
from elastic_export.elastic import Descendant, Supernet, extract, has_batchnorm, recalibrate
from elastic_export.elastic.macs import count_macs
from elastic_export.pipeline.inputs import dataset_for

__all__ = ["cost_of", "extract_one"]

_RECALIBRATION_IMAGES = 2048


def extract_one(
    checkpoint: Path,
    *,
    family: str | None,
    format: str,
    config: Mapping[str, Any],
    spec: Mapping[str, Any] | str | None,
    out: Path,
    data: DataConfig | None = None,
) -> dict[str, Any]:
    """Extract one descendant of a checkpoint into a file.

    Args:
        checkpoint: A supernet of ours or a plain checkpoint.
        family: The family it must belong to; None to find out.
        format: ``auto`` or the name of a reader.
        config: Family settings the file does not hold.
        spec: ``min``, ``max``, a named spec or a mapping of choices; None is ``max``.
        out: The folder for ``NAME.safetensors``.
        data: The data set to estimate BatchNorm statistics on; without one they stay as stored.

    Returns:
        What was extracted: path, spec, costs, and what to know about it.

    Raises:
        UserError: The checkpoint or the spec cannot be used.
        CheckFailed: The extracted network is not what its space says.
    """
    found = import_supernet(checkpoint, family=family, format=format, config=config)
    supernet = found.supernet
    wanted = supernet.spec(spec if spec is not None else "max")
    one = extract(supernet, wanted, copy=False)
    notes = list(found.notes)
    elastic = any(len(axis.choices) > 1 for axis in supernet.space.axes)
    if has_batchnorm(one.module) and (elastic or data is not None):
        notes.append(_recalibrated(one, supernet, data))
    label = spec if isinstance(spec, str) else ("max" if spec is None else one.spec_id)
    path = out / f"{_stem(checkpoint)}-{label}.safetensors"
    save_descendant(one, path)
    channels, size, _ = supernet.family.input_shape(supernet.config, wanted)
    official = found.official(wanted) if found.official is not None else {}
    return {
        "path": str(path),
        "family": one.family,
        "format": found.format,
        "spec_id": one.spec_id,
        "spec": one.genes,
        "patterns": one.patterns,
        **cost_of(one, channels, size).model_dump(),
        **({"official_cost": dict(official)} if official else {}),
        "notes": notes,
    }


def _stem(checkpoint: Path) -> str:
    """The name without its endings: ``deit`` for ``deit.pth.tar`` and for ``timm:deit``."""
    name = checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.name
    return name.removeprefix("timm:").partition(".")[0].partition("?")[0]


def _recalibrated(one: Descendant, supernet: Supernet, data: DataConfig | None) -> str:
    """Estimate BatchNorm statistics where there is data, and say what was done."""
    if data is None:
        return (
            "BatchNorm statistics are those stored for the whole supernet. Give --data to estimate "
            "this descendant's own; without that its accuracy may be near chance."
        )
    spec = supernet.spec(one.genes)
    train = dataset_for(supernet.family, supernet.config, spec, data).train
    images = train.head(min(len(train), _RECALIBRATION_IMAGES))
    batches = (x for x, _ in images.batches(min(64, len(images))))
    change = recalibrate(one.module, batches, variance=supernet.family.bn_variance)
    return (
        f"BatchNorm statistics were estimated on {len(images)} training images; the largest change "
        f"of a mean was {change:.2f} standard deviations."
    )


def cost_of(one: Descendant, channels: int, size: int) -> Cost:
    """Count a descendant's costs on its own module."""
    macs = count_macs(one.module, (channels, size, size))
    return Cost(
        macs=macs.total,
        algorithmic_macs=macs.weighted(one.patterns, hardware=False),
        hardware_macs=macs.weighted(one.patterns, hardware=True),
        params=sum(p.numel() for p in one.module.parameters()),
    )
