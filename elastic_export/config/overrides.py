"""Dotted overrides: ``quantize.calibration=max-512`` changes one value of a recipe."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from elastic_export.config.reading import parse_yaml
from elastic_export.errors import UserError

__all__ = ["apply_overrides"]


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``values`` with each ``a.b.c=VALUE`` set; VALUE is read as YAML.

    Sections that are absent or null are made on the way; a number picks an entry of a list.
    Whether the key exists is for the schema to say.

    Raises:
        UserError: For an override without ``=`` or through something that is no section.
    """
    changed = copy.deepcopy(dict(values))
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise UserError(
                f'The override "{override}" is not of the form KEY=VALUE.',
                "Write for example --set train.steps=200, or --set targets=[host-cpu] for a list.",
            )
        _set(changed, keys, parse_yaml(text, f'the value of "{name}"'), name)
    return changed


def _set(section: Any, keys: list[str], value: Any, name: str) -> None:
    for depth, key in enumerate(keys):
        last = depth + 1 == len(keys)
        place = ".".join(keys[:depth])
        if isinstance(section, list):
            if not key.isdecimal() or int(key) >= len(section):
                raise UserError(
                    f'The override "{name}" cannot be applied: "{place}" is a list of '
                    f"{len(section)} entries.",
                    f'Use a number below {len(section)} instead of "{key}", or set the whole list.',
                )
            if last:
                section[int(key)] = value
            else:
                section = section[int(key)]
            continue
        if not isinstance(section, dict):
            raise UserError(
                f'The override "{name}" cannot be applied: "{place}" is a value, not a section.',
                f"Set it as a whole with --set {place}=VALUE.",
            )
        if last:
            section[key] = value
        else:
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
