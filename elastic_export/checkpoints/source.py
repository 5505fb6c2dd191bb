"""From a file to a supernet: find out the format and let its reader account for every key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from elastic_export.checkpoints.native import load_supernet, read_label
from elastic_export.checkpoints.reader import Imported, Source
from elastic_export.checkpoints.readers import readers, who_claims
from elastic_export.checkpoints.timm_models import TimmModelReader, is_model_name
from elastic_export.errors import UserError, did_you_mean
from elastic_export.sparsity import measured_density

__all__ = ["formats", "import_supernet"]


def formats() -> tuple[str, ...]:
    """What ``--format`` takes."""
    return ("auto", "native", *readers())


def import_supernet(
    path: Path, *, family: str | None = None, format: str = "auto", config: Mapping[str, Any]
) -> Imported:
    """Read a supernet or a plain network.

    Args:
        path: A file, a folder of a system that writes several, or ``timm:NAME``.
        family: The family the file must belong to; None to find it out.
        format: ``auto``, ``native`` or the name of a reader.
        config: The system's own configuration, or family settings that the file does not hold,
            such as ``heads`` of a ViT, or both.

    Raises:
        UserError: The file is missing, damaged, of another family, or lacks something that cannot
            be known without being told.
    """
    if format not in formats():
        raise UserError(
            f'There is no checkpoint format "{format}".', did_you_mean(format, list(formats()))
        )
    label = read_label(path) if path.suffix == ".safetensors" else None
    if label is None and format == "native":
        raise UserError(
            f"{path} was not written by this tool.", "Leave the format out, or set it to timm."
        )
    source = Source(path, config, family)
    if is_model_name(path) and format == "auto":
        format = TimmModelReader.name  # no file for the readers to look at
    if label is not None and format in ("auto", "native"):
        found = _native(source)
    else:
        reader = readers().get(format) or who_claims(source)
        if reader is None:
            raise UserError(
                f"{path} is of no system this tool reads.",
                f"Name one with --format: {', '.join(readers())}.",
            )
        found = reader.read(source)
        found.format, found.system = reader.name, reader.system
    if family is not None and found.supernet.family.name != family:
        raise UserError(
            f"{path} is of family {found.supernet.family.name}, not {family}.",
            f"Set the family to {found.supernet.family.name}, or leave it out.",
        )
    found.sparsity = _sparsity(found.supernet.state_dict())
    return found


def _native(source: Source) -> Imported:
    return Imported(load_supernet(source.path), "native", "elastic-export", ("supernet",))


def _sparsity(state: Mapping[str, Tensor]) -> dict[str, float]:
    zeros = {
        name: 1.0 - measured_density(tensor)
        for name, tensor in state.items()
        if tensor.dim() >= 2 and tensor.is_floating_point()
    }
    return {name: round(share, 4) for name, share in zeros.items() if share >= 0.01}
