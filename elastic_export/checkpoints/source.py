"""From a file to a supernet: find out the format, read it, account for every key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from elastic_export.checkpoints.native import load_supernet, read_label
from elastic_export.checkpoints.safe import load_tensors, state_dict_of
from elastic_export.elastic import Supernet
from elastic_export.errors import UserError, did_you_mean
from elastic_export.families import families, get_family
from elastic_export.families.registry import family_config
from elastic_export.sparsity import measured_density

__all__ = ["FORMATS", "Imported", "import_supernet"]

FORMATS = ("auto", "native", "timm")


@dataclass
class Imported:
    """A supernet read from a file, with what was found in it.

    Attributes:
        supernet: Filled with the file's values.
        format: The reader that understood the file.
        stored: Names of the tensor collections in the file, such as ``model`` and ``model_ema``.
        sparsity: Parameter name to the measured share of zeros, where at least 1 %.
        ignored: Key to the reason why it is not needed.
    """

    supernet: Supernet
    format: str
    stored: tuple[str, ...] = ()
    sparsity: dict[str, float] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)


def import_supernet(
    path: Path, *, family: str | None = None, format: str = "auto", config: Mapping[str, Any]
) -> Imported:
    """Read a supernet or a plain network.

    Args:
        path: A file of ours, or a torch or safetensors file with timm's parameter names.
        family: The family the file must belong to; None to find it out.
        format: ``auto``, ``native`` or ``timm``.
        config: Family settings that the file does not hold, such as ``heads`` of a ViT.

    Raises:
        UserError: The file is missing, damaged, of another family, or lacks something that cannot
            be known without being told.
    """
    if format not in FORMATS:
        raise UserError(
            f'There is no checkpoint format "{format}".', did_you_mean(format, list(FORMATS))
        )
    label = read_label(path) if path.suffix == ".safetensors" else None
    if label is None and format == "native":
        raise UserError(
            f"{path} was not written by this tool.", "Leave model.format out, or set it to timm."
        )
    if label is not None and format != "timm":
        return _native(path, family)
    return _plain(path, family, config)


def _native(path: Path, family: str | None) -> Imported:
    supernet = load_supernet(path)
    if family is not None and supernet.family.name != family:
        raise UserError(
            f"{path} is a supernet of family {supernet.family.name}, not {family}.",
            f"Set model.family to {supernet.family.name}.",
        )
    return Imported(supernet, "native", ("supernet",), _sparsity(supernet.state_dict()))


def _plain(path: Path, wanted: str | None, hints: Mapping[str, Any]) -> Imported:
    found = state_dict_of(load_tensors(path))
    state = dict(found.tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    name = wanted or _guess(path, shapes)
    family = get_family(name)
    try:
        recognised = family.recognise(shapes, hints)
    except UserError as error:
        others = [n for n in _matching(shapes) if n != name]
        if others:
            raise UserError(
                f"{path} is not a checkpoint of family {name}: its names are those of {others[0]}.",
                f"Set model.family to {others[0]}.",
            ) from error
        raise
    config = family_config(family, recognised.model_dump(mode="json"))
    supernet = Supernet.empty(family, config)
    supernet.load_state_dict(state)
    return Imported(supernet, "timm", found.collections, _sparsity(state))


def _matching(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [name for name, family in families().items() if all(m in shapes for m in family.marks)]


def _guess(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    names = _matching(shapes)
    if not names:
        examples = ", ".join(list(shapes)[:3])
        raise UserError(
            f"{path} holds {len(shapes)} tensors ({examples}, ...), which are of no known family.",
            f"Known families with timm's names: {', '.join(families())}.",
        )
    return names[0]


def _sparsity(state: Mapping[str, Tensor]) -> dict[str, float]:
    zeros = {
        name: 1.0 - measured_density(tensor)
        for name, tensor in state.items()
        if tensor.dim() >= 2 and tensor.is_floating_point()
    }
    return {name: round(share, 4) for name, share in zeros.items() if share >= 0.01}
