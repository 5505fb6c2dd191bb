"""The YAML files of AutoFormer: SUPERNET (stored sizes), SEARCH_SPACE (choices), RETRAIN (one)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elastic_export.errors import UserError

__all__ = ["YAML_KEYS", "Choices", "read_yaml"]

YAML_KEYS = ("SUPERNET", "SEARCH_SPACE", "RETRAIN")

_NAMES: dict[str, tuple[str, Callable[[Any], int | float]]] = {
    "EMBED_DIM": ("width", int),
    "DEPTH": ("depth", int),
    "NUM_HEADS": ("heads", int),
    "MLP_RATIO": ("mlp_ratio", float),
}
_PER_BLOCK = ("NUM_HEADS", "MLP_RATIO")


@dataclass(frozen=True)
class Choices:
    """What a YAML says, in our names; each part may be empty.

    Attributes:
        supernet: ``super_`` sizes.
        space: Lists of choices, from small to large.
        retrain: One spec; heads and MLP ratio list a value for each block.
    """

    supernet: dict[str, int | float] = field(default_factory=dict)
    space: dict[str, list[int | float]] = field(default_factory=dict)
    retrain: dict[str, Any] = field(default_factory=dict)


def read_yaml(theirs: Mapping[str, Any]) -> Choices:
    """Read the three parts, as far as they are given.

    Raises:
        UserError: A part lacks a key, has an unknown one, or a value is not a positive number.
    """
    supernet = {
        f"super_{ours}": value
        for ours, value in _part(theirs, "SUPERNET", lambda name, key: False).items()
    }
    space = _part(theirs, "SEARCH_SPACE", lambda name, key: True)
    retrain = _part(theirs, "RETRAIN", lambda name, key: key in _PER_BLOCK)
    for name, values in space.items():
        space[name] = sorted(set(values))
    for name in ("heads", "mlp_ratio"):
        if retrain and len(retrain[name]) < retrain["depth"]:
            raise UserError(
                f"RETRAIN has {len(retrain[name])} values of {name} for a depth of "
                f"{retrain['depth']}.",
                "Give one for each block.",
            )
        if retrain:
            retrain[name] = retrain[name][: retrain["depth"]]
    return Choices(supernet, space, retrain)


def _part(
    theirs: Mapping[str, Any], name: str, is_list: Callable[[str, str], bool]
) -> dict[str, Any]:
    """One part in our names; empty where it is not given."""
    part = theirs.get(name)
    if part is None:
        return {}
    if not isinstance(part, Mapping) or set(part) != set(_NAMES):
        keys = ", ".join(str(key) for key in part) if isinstance(part, Mapping) else repr(part)
        raise UserError(
            f"{name} must give {', '.join(_NAMES)}, but gives {keys or 'nothing'}.",
            "Give the YAML as AutoFormer has it, in experiments/supernet or experiments/subnet.",
        )
    found: dict[str, Any] = {}
    for key, (ours, kind) in _NAMES.items():
        value = part[key]
        where = f"{name}.{key}"
        if not is_list(name, key):
            found[ours] = _number(where, value, kind)
        elif isinstance(value, list | tuple) and value:
            found[ours] = [_number(where, item, kind) for item in value]
        else:
            raise UserError(f"{where} is {value!r}, which is not a list of numbers.", "Correct it.")
    return found


def _number(where: str, value: Any, kind: Callable[[Any], int | float]) -> int | float:
    """A positive number; text that says one counts, as YAML files quote them now and then."""
    try:
        number = float(value)
        if isinstance(value, bool) or not 0 < number < float("inf") or kind(number) != number:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        wanted = "whole number" if kind is int else "number"
        raise UserError(
            f"{where} holds {value!r}, which is not a positive {wanted}.", "Correct the YAML."
        ) from None
    return kind(number)
