"""From separate networks, each inside the next, to one store with channels in nested order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elastic_export.elastic import Supernet
from elastic_export.errors import UserError
from elastic_export.families.nested import Nested, override_name, tensors_of, unfold
from elastic_export.families.nested.network import Network, short
from elastic_export.families.registry import family_config, get_family

__all__ = ["Nesting", "Rung", "nest", "same_in_all_parts"]

Entries = tuple[int, ...]


@dataclass(frozen=True)
class Rung:
    """One network on the way in.

    Attributes:
        tensors: Its tensors with the plain module's names, channels in the order of the file.
        sizes: Coupling group to width.
        kept: Coupling group to the channels of the largest network that this one has, ascending.
        heads: Attention heads, for a ViT.
    """

    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    kept: Mapping[str, Entries]
    heads: int | None = None


@dataclass(frozen=True)
class Nesting:
    """The networks in one store.

    Attributes:
        supernet: Of family ``nested``.
        differences: For each level the tensors it has of its own, with the largest difference
            from the slice it would share; infinite where there is no such slice.
    """

    supernet: Supernet
    differences: tuple[Mapping[str, float], ...]


def nest(network: Network, image: Mapping[str, Any], rungs: Sequence[Rung]) -> Nesting:
    """Put nested networks into one store.

    In every coupling group the channels are sorted by the level at which they appear, then by
    their place in the largest network. Attention channels are sorted within each head, where the
    levels keep the same offsets of all heads; where a level's heads do not fit that, its rows are
    listed. A tensor that is not the slice of the largest level's, bit by bit, is stored for its
    level alone, so extraction gives back every network exactly.

    Args:
        network: What they share.
        image: ``image_size``, ``in_chans``, ``num_classes`` and whatever else the config takes.
        rungs: The networks from the smallest to the largest.

    Raises:
        UserError: The sizes do not nest, or a tensor has another shape or kind than it needs.
    """
    family, last = get_family(Nested.name), len(rungs) - 1
    parts = _parts(network, rungs)
    kept = {g: [rung.kept[g] for rung in rungs] for g in network.groups(last)}
    places = {group: _places(levels, parts.get(group, 1)) for group, levels in kept.items()}
    rows = [
        {
            group: tuple(places[group][i] for i in rung.kept[group])
            for group, count in parts.items()
            if count % (rung.heads or 1)
        }
        for rung in rungs
    ]
    levels: list[dict[str, Any]] = [
        {"sizes": _brief(rung.sizes), "heads": rung.heads, "rows": listed}
        for rung, listed in zip(rungs, rows, strict=True)
    ]
    raw = {**image, "network": network.model_dump(mode="json"), "parts": _brief(parts)}
    config = family_config(family, {**raw, "levels": levels})
    specs = [family.space(config).canonical({"level": n + 1}) for n in range(len(rungs))]
    plains = [family.skeleton(config, spec) for spec in specs]
    for number, (rung, plain) in enumerate(zip(rungs, plains, strict=True)):
        _check(rung.tensors, tensors_of(plain), number + 1)
    orders = {group: _ascending(place, range(len(place))) for group, place in places.items()}
    store = dict(_arranged(network, last, rungs[-1].tensors, orders))
    own: dict[str, Tensor] = {}
    differences = []
    for number, rung in enumerate(rungs):
        order = {
            group: tuple(range(len(rung.kept[group])))
            if group in rows[number]
            else _ascending(places[group], rung.kept[group])
            for group in network.groups(number)
        }
        rules = family.rules(config, specs[number], plains[number])
        differing = {}
        for name, tensor in _arranged(network, number, rung.tensors, order):
            alike = network.layout(number)[name] == network.layout(last).get(name)
            shared = rules[name].read(store) if alike else None
            if shared is None or not torch.equal(shared, tensor):
                differing[name] = _difference(shared, tensor)
                own[override_name(number + 1, name)] = tensor
        levels[number]["overrides"] = tuple(differing)
        differences.append(differing)
    final = family_config(family, {**raw, "levels": levels})
    return Nesting(Supernet.of_state(family, final, store | own), tuple(differences))


def same_in_all_parts(kept: Sequence[Sequence[int]], parts: int) -> bool:
    """Whether every level keeps the same offsets of each of ``parts`` equal parts.

    Args:
        kept: The channels of each level; the last has all.
        parts: Into how many parts the channels are split, such as heads.
    """
    whole = len(kept[-1])
    if whole % parts:
        return False
    step = whole // parts
    return all(
        {i % step + part * step for i in level for part in range(parts)} == set(level)
        for level in kept
    )


def _parts(network: Network, rungs: Sequence[Rung]) -> dict[str, int]:
    """For each attention group the head count that orders it: the one that suits most levels."""
    counts = [rung.heads for rung in rungs if rung.heads is not None]
    found = {}
    for group in network.groups(len(rungs) - 1):
        if counts and short(group) == "inner":
            kept = [rung.kept[group] for rung in rungs]
            fitting = [n for n in sorted(set(counts)) if same_in_all_parts(kept, n)]
            suits = {n: sum(n % count == 0 for count in counts) for n in fitting}
            found[group] = max(fitting, key=lambda n: suits[n], default=1)
    return found


def _places(kept: Sequence[Entries], parts: int) -> list[int]:
    """The stored place of each channel: by part, then level of appearance, then old place."""
    whole = len(kept[-1])
    appears = [len(kept)] * whole
    for level in reversed(range(len(kept))):
        for i in kept[level]:
            appears[i] = level
    step = whole // parts
    order = sorted(range(whole), key=lambda i: (i // step, appears[i], i))
    places = [0] * whole
    for place, i in enumerate(order):
        places[i] = place
    return places


def _ascending(places: Sequence[int], channels: Sequence[int]) -> Entries:
    """Which of the given channels come first, second, ... in the stored order."""
    return tuple(sorted(range(len(channels)), key=lambda i: places[channels[i]]))


def _arranged(
    network: Network, number: int, tensors: Mapping[str, Tensor], order: Mapping[str, Entries]
) -> Iterator[tuple[str, Tensor]]:
    """A level's tensors with the channels of each group in the given order, one by one."""
    layout = network.layout(number)
    for name, tensor in tensors.items():
        for axis, dim in enumerate(layout[name]):
            if dim is None or order[dim.group] == tuple(range(len(order[dim.group]))):
                continue
            repeats = network.repeats(name) if axis == 1 else 1
            entries = unfold(order[dim.group], len(order[dim.group]), dim.blocks, repeats)
            tensor = tensor.index_select(axis, torch.tensor(entries))
        yield name, tensor


def _check(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], number: int) -> None:
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"{name} of level {number} has shape {tuple(tensors[name].shape)}, where the "
                f"network of these levels needs {tuple(tensor.shape)}.",
                "All levels must have the same inputs and classes; check that the files belong "
                "together.",
            )
        given = tensors[name].dtype
        if given.is_complex or given.is_floating_point != tensor.is_floating_point():
            raise UserError(
                f"{name} of level {number} holds values of type {given}.",
                "Save the network with floating-point weights.",
            )


def _difference(shared: Tensor | None, tensor: Tensor) -> float:
    if shared is None or shared.shape != tensor.shape:
        return float("inf")
    return float((shared.double() - tensor.double()).abs().max())


def _brief(values: Mapping[str, int]) -> dict[str, int]:
    """Short names where all groups of a kind agree."""
    kinds: dict[str, set[int]] = {}
    for group, value in values.items():
        kinds.setdefault(short(group), set()).add(value)
    return {
        short(group) if len(kinds[short(group)]) == 1 else group: value
        for group, value in values.items()
    }
