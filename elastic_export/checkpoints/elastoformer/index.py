"""Pruning metadata of Elastoformer: which channels of the full network each level keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elastic_export.checkpoints.safe import load_tensors
from elastic_export.errors import UserError

__all__ = ["GroupOf", "Step", "kept_channels", "read_step"]

Entries = tuple[int, ...]
GroupOf = Callable[[str, str], str | None]
"""Layer name and side (``in`` or ``out``) to the coupling group; None where that side has no
channels that levels choose from, or not one entry a channel."""

_CHECK = (
    "The files are not of one experiment, or damaged; copy them again from where they were made."
)


@dataclass(frozen=True)
class Step:
    """One metadata file: the way from a level to the one below.

    Attributes:
        path: The file.
        gained: (layer, side) to the channels that the upper level has in addition.
        kept: (layer, side) to the channels that the lower level has.
        ignored: Keys that are not read.
    """

    path: Path
    gained: Mapping[tuple[str, str], Entries]
    kept: Mapping[tuple[str, str], Entries]
    ignored: tuple[str, ...]


def read_step(path: Path) -> Step:
    """Read a metadata file of either revision.

    The present one has ``pruned_index_in`` and so on; earlier ones ``pruned_index`` or
    ``pruned_indexes``, a list of two tables, inputs first.

    Raises:
        UserError: It is no metadata, or a table is not one of whole numbers.
    """
    content = load_tensors(path).content
    if not isinstance(content, Mapping):
        content = {}
    used: set[str] = set()
    tables: dict[str, dict[tuple[str, str], Entries]] = {}
    for kind in ("pruned", "non_pruned"):
        sides = {side: content.get(f"{kind}_index_{side}") for side in ("in", "out")}
        used |= {f"{kind}_index_in", f"{kind}_index_out"}
        for key in (f"{kind}_index", f"{kind}_indexes"):
            pair = content.get(key)
            if isinstance(pair, Sequence) and len(pair) == 2:
                sides = {"in": pair[0], "out": pair[1]}
                used.add(key)
        if not all(isinstance(table, Mapping) for table in sides.values()):
            raise UserError(
                f"{path} is not pruning metadata: it has no {kind}_index_in and {kind}_index_out.",
                "Put the files that the system wrote beside the levels.",
            )
        tables[kind] = {
            (str(layer), side): _entries(path, str(layer), value)
            for side, table in sides.items()
            for layer, value in table.items()  # type: ignore[union-attr]
        }
    if tables["pruned"].keys() != tables["non_pruned"].keys():
        odd = sorted(tables["pruned"].keys() ^ tables["non_pruned"].keys())[0]
        raise UserError(
            f"{path} tells what {odd[0]} loses or keeps ({odd[1]}), but not both.", _CHECK
        )
    ignored = tuple(str(key) for key in content if key not in used)
    return Step(path, tables["pruned"], tables["non_pruned"], ignored)


def kept_channels(
    steps: Mapping[int, Step], sizes: Sequence[Mapping[str, int]], group_of: GroupOf
) -> tuple[list[dict[str, Entries]], list[str]]:
    """The channels of the largest level that each level has.

    Args:
        steps: Metadata by the level in its name, 2 to the last.
        sizes: Coupling group to width, from level 1 on.
        group_of: Where a layer's channels belong.

    Returns:
        For each level from 1 on, coupling group to channels, ascending; and notes.

    Raises:
        UserError: Sets overlap, are incomplete or out of range, layers of one group disagree, or
            a set does not have as many channels as the level.
    """
    notes = []
    top = sizes[-1]
    kept: list[dict[str, Entries]] = [{group: tuple(range(top[group])) for group in top}]
    for level in range(len(sizes), 1, -1):
        step = steps[level]
        try:
            below = _lower(step, level, sizes, kept[0], group_of)
        except UserError:
            # Earlier revisions numbered the files from the other end.
            others = [s for number, s in steps.items() if number != level]
            fitting = [s for s in others if _fits(s, level, sizes, kept[0], group_of)]
            if len(fitting) != 1:
                raise
            below = _lower(fitting[0], level, sizes, kept[0], group_of)
            notes.append(
                f"{fitting[0].path.name} describes level {level} by its channels, whatever its "
                "name says."
            )
        kept.insert(0, below)
    return kept, notes


def _fits(
    step: Step,
    level: int,
    sizes: Sequence[Mapping[str, int]],
    above: Mapping[str, Entries],
    group_of: GroupOf,
) -> bool:
    try:
        _lower(step, level, sizes, above, group_of)
    except UserError:
        return False
    return True


def _lower(
    step: Step,
    level: int,
    sizes: Sequence[Mapping[str, int]],
    above: Mapping[str, Entries],
    group_of: GroupOf,
) -> dict[str, Entries]:
    """The channels of the level below ``level``, checked against what both must have."""
    below: dict[str, Entries] = {}
    named: dict[str, str] = {}
    wanted = sizes[level - 2]
    for (layer, side), entries in step.kept.items():
        group = group_of(layer, side)
        if group is None:
            continue
        said = f"{step.path.name}: the {side}put channels of {layer}"
        gained = step.gained[layer, side]
        if len({*entries, *gained}) != len(entries) + len(gained):
            raise UserError(f"{said} are listed twice, or as lost and kept at once.", _CHECK)
        odd = {*entries, *gained} ^ set(above[group])
        if odd:
            raise UserError(
                f"{said} do not make up the {len(above[group])} of level {level}: channel "
                f"{min(odd)} is missing or out of range.",
                "A level above is missing, or the files are not of one experiment.",
            )
        kept = tuple(sorted(entries))
        if len(kept) != wanted[group]:
            raise UserError(
                f"{said} keep {len(kept)}, but level {level - 1} has {wanted[group]}.", _CHECK
            )
        if below.setdefault(group, kept) != kept:
            raise UserError(
                f"{said} are not those of {named[group]}, although the two belong together.", _CHECK
            )
        named.setdefault(group, layer)
    for group, channels in above.items():
        if group not in below:
            if wanted[group] != len(channels):
                raise UserError(
                    f"{step.path.name} does not tell which of {len(channels)} channels of {group} "
                    f"level {level - 1} keeps.",
                    _CHECK,
                )
            below[group] = channels
    return below


def _entries(path: Path, layer: str, value: Any) -> Entries:
    if isinstance(value, Tensor):
        whole = value.dim() == 1 and not value.is_floating_point() and value.dtype != torch.bool
        value = value.tolist() if whole or value.numel() == 0 else None
    if not isinstance(value, list | tuple) or not all(type(i) is int for i in value):
        raise UserError(f"{path} does not list channels of {layer} as whole numbers.", _CHECK)
    return tuple(value)
