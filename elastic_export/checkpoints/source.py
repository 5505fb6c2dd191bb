"""From a file to a supernet: find out the format and let its reader account for every key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from elastic_export.artifacts.digest import sha256_file, sha256_json, sha256_tree
from elastic_export.checkpoints.native import load_supernet, read_label
from elastic_export.checkpoints.plain.timm_models import (
    TimmModelReader,
    is_model_name,
    model_identity,
)
from elastic_export.checkpoints.reader import Imported, Source
from elastic_export.checkpoints.readers import readers, who_claims
from elastic_export.errors import UserError, did_you_mean
from elastic_export.families import get_family
from elastic_export.sparsity import measured_density

__all__ = ["check_format", "formats", "identity", "import_supernet"]


def formats() -> tuple[str, ...]:
    """What ``--format`` takes."""
    return ("auto", "native", *readers())


def check_format(format: str) -> None:
    """Refuse a name that no reader has.

    Raises:
        UserError: Naming the nearest, or all.
    """
    if format not in formats():
        raise UserError(
            f'There is no checkpoint format "{format}".', did_you_mean(format, list(formats()))
        )


def identity(path: Path) -> str:
    """What a store key says of a checkpoint: its content, and that of what is read beside it.

    A change of any file that a reader may look at beside it counts, whoever reads it.

    Raises:
        UserError: There is nothing at the path.
    """
    if is_model_name(path):
        return model_identity(path)
    if not path.exists():
        raise UserError(f"There is no checkpoint {path}.", "Check the path.")
    if path.is_dir():
        return sha256_tree(path)
    patterns = {pattern for reader in readers().values() for pattern in reader.companions}
    beside = {file for pattern in patterns for file in path.parent.glob(pattern)}
    return sha256_json([sha256_file(file) for file in [path, *sorted(beside)] if file.is_file()])


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
    check_format(format)
    if family is not None:
        get_family(family)
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
        found.ignored = {**found.ignored, **reader.left_out(source, found)}
    if family is not None and found.supernet.family.name != family:
        raise UserError(
            f"{path} is of family {found.supernet.family.name}, not {family}.",
            f"Set model.family (or --family) to {found.supernet.family.name}, or leave it out.",
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
