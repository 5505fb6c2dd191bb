"""From renamed tensors to a supernet: what every reader of plain networks does at the end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic
import torch
from torch import Tensor

from elastic_export.checkpoints.reader import Imported, Keys, Source
from elastic_export.checkpoints.safe import StateDict
from elastic_export.elastic import Supernet
from elastic_export.errors import UserError, did_you_mean
from elastic_export.families import families, get_family
from elastic_export.families.registry import family_config

__all__ = ["ARCH", "Named", "finish", "no_classifier", "stages_in", "supernet_of", "tensor_names"]

ARCH = "arch"
"""The setting that names timm's model, for what a file does not hold."""
_COUNT = "num_batches_tracked"


@dataclass
class Named:
    """The tensors of a plain network under its family's names.

    Attributes:
        family: The family's name.
        tensors: Parameter or buffer name to tensor.
        known: Family settings that the file or its ``config.json`` tells; others are refused.
        assumed: Family settings that networks of this origin have; given ones win.
        ignored: Key to the reason why it is not needed.
        notes: What a user should know.
    """

    family: str
    tensors: dict[str, Tensor]
    known: dict[str, Any] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def finish(source: Source, found: StateDict, named: Named, reader: str) -> Imported:
    """Make the supernet of one network.

    Args:
        source: The file with the settings given.
        found: The collection the tensors come from.
        named: Its tensors under the family's names.
        reader: The reader's name.

    Raises:
        UserError: The settings contradict the file, something is missing, or does not fit.
    """
    given = dict(source.config)
    known = dict(named.known)
    notes = list(named.notes)
    arch = given.pop(ARCH, None)
    if arch is not None:
        from elastic_export.checkpoints.plain.timm_models import settings_of

        known = {**settings_of(str(arch), named), **known}
        notes.append(f"What the file does not hold is taken from timm's {arch}.")
    _agree(source, known, given)
    name = source.family or named.family
    settings = {**named.assumed, **known, **given}
    if name != named.family:
        raise UserError(
            f"{source.path} is not a checkpoint of family {name}: its names are those of "
            f"{named.family}.",
            f"Set model.family (or --family) to {named.family}, or leave it out.",
        )
    if name == "vit" and not {"heads", "head_dim"} & settings.keys():
        _check_spelling(given)
        raise UserError(
            "The number of heads is not stored in this checkpoint.",
            "Give it as model.config.heads in a recipe, or with --set heads=[3] on the command "
            f"line (3 for DeiT-T), or name timm's model with --set {ARCH}=deit_tiny_patch16_224.",
        )
    tensors = _counted(named.tensors)
    if name == "vgg":
        notes.append("Poolings are where the numbers of the layers have gaps, and at the end.")
    supernet = supernet_of(source, name, named.family, tensors, settings)
    return Imported(
        supernet,
        reader,
        stored=found.collections,
        used=found.name,
        ignored=named.ignored,
        notes=tuple(notes),
    )


def supernet_of(
    source: Source,
    name: str,
    own: str,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> Supernet:
    """A supernet of named tensors; every way in which they do not fit is a user's error.

    Args:
        source: The file.
        name: The family they must be of.
        own: The family whose names they have.
        tensors: Parameter or buffer name to tensor.
        settings: What the tensors do not tell.

    Raises:
        UserError: They are of another family, incomplete, or do not fit the settings.
    """
    family = get_family(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        recognised = family.recognise(shapes, settings)
    except UserError as error:
        others = {own} | {n for n, f in families().items() if all(m in shapes for m in f.marks)}
        others -= {name, ""}
        if others:
            first = sorted(others)[0]
            raise UserError(
                f"{source.path} is not a checkpoint of family {name}: its names are those of "
                f"{first}.",
                f"Set model.family to {first}.",
            ) from error
        raise
    except pydantic.ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: "
            f"{item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        )
        raise UserError(
            f"{source.path} and the settings given do not make a {name}: {problems}.",
            "Correct the settings (model.config, or --set).",
        ) from error
    except KeyError as error:
        raise UserError(
            f"{source.path} has no tensor {error.args[0]}.",
            "The file is incomplete or of another system; inspect tells what it holds.",
        ) from error
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"The sizes in {source.path}, with the settings given, are not those of a {name}.",
            "Correct the settings, or name the family with --family.",
        ) from error
    config = family_config(family, recognised.model_dump(mode="json"))
    return Supernet.of_state(family, config, tensors)


def _agree(source: Source, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for key in known.keys() & given.keys():
        told, wanted = _largest(known[key]), _largest(given[key])
        if told != wanted:
            raise UserError(
                f"{key} is given as {given[key]}, but {source.path} is a network with {told}.",
                f"Leave {key} out, or correct it.",
            )


def _largest(value: Any) -> Any:
    if isinstance(value, list | tuple) and value and all(isinstance(v, int | float) for v in value):
        return max(value)
    return value


def _counted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the batch counters that files from before torch 0.4.1 lack; nothing depends on them."""
    missing = {
        name: torch.tensor(0)
        for key in tensors
        if key.endswith(".running_mean")
        and (name := f"{key.removesuffix('running_mean')}{_COUNT}") not in tensors
    }
    return {**tensors, **missing}


def no_classifier(source: Source, name: str) -> UserError:
    """The error for a backbone without its last layer."""
    return UserError(
        f"{source.path} holds a backbone without a classifier: {name} is missing.",
        "Only classifiers are imported: train a classification head on it (a linear probe will "
        "do) and save the whole network.",
    )


def tensor_names(source: Source) -> frozenset[str]:
    """Names of all tensors of a file, those of its collections included; for ``claims``."""
    content = source.content
    if not isinstance(content, Mapping):
        return frozenset()
    names: set[str] = set()
    for key, value in content.items():
        if isinstance(value, Tensor):
            names.add(str(key))
        elif isinstance(value, Mapping):
            names.update(str(name) for name in value)
    return frozenset(name.removeprefix("module.") for name in names)


def stages_in(keys: Keys, pattern: str) -> int:
    """One more than the largest number that a pattern's group finds in the keys; 0 if none."""
    numbers = (int(found[1]) for name in keys if (found := re.match(pattern, name)))
    return max(numbers, default=-1) + 1


def _check_spelling(given: Mapping[str, Any]) -> None:
    """Tell of a misspelt setting before one is asked for that it may have meant."""
    known = list(get_family("vit").Config.model_fields)
    for key in given:
        if key not in known:
            raise UserError(f'There is no setting "{key}".', did_you_mean(key, known))
