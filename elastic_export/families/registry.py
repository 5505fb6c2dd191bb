"""Find a family by name; families register themselves where they are defined."""

from __future__ import annotations

from typing import Any

import pydantic

from elastic_export.config.base import Schema
from elastic_export.elastic.family import Family
from elastic_export.errors import UserError, did_you_mean

__all__ = ["families", "family_config", "get_family", "register"]

_FAMILIES: dict[str, Family] = {}
_MANY = 5
"""More unknown settings than anyone misspells: they were written for something else."""


def register(family: type[Any]) -> type[Any]:
    """Class decorator: make one instance of the family known under its name."""
    _FAMILIES[family.name] = family()
    return family


def families() -> dict[str, Family]:
    """All families by name."""
    from elastic_export.families import (  # noqa: F401 - they register themselves
        alphanet,
        autoformer,
        convnext,
        elasticvit,
        nested,
        ofa,
        resnet,
        swin,
        vgg,
        vit,
    )

    return dict(sorted(_FAMILIES.items()))


def get_family(name: str) -> Family:
    """Look a family up.

    Raises:
        UserError: There is no such family.
    """
    known = families()
    if name not in known:
        raise UserError(f'There is no family "{name}".', did_you_mean(name, list(known)))
    return known[name]


def family_config(family: Family, raw: dict[str, Any]) -> Schema:
    """Check a family's settings.

    Raises:
        UserError: A key is unknown or a value does not fit; every problem is named.
    """
    try:
        return family.Config.model_validate(raw)
    except pydantic.ValidationError as error:
        problems = []
        unknown = [str(i["loc"][-1]) for i in error.errors() if i["type"] == "extra_forbidden"]
        if len(unknown) > _MANY:
            raise UserError(
                f"{len(unknown)} settings are unknown to family {family.name} "
                f"({', '.join(unknown[:_MANY])}, ...): they are of another system or family.",
                f"Settings of {family.name} are {', '.join(family.Config.model_fields)}.",
            ) from error
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"])
            text = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                known = did_you_mean(where, list(family.Config.model_fields))
                text = f"unknown key ({known.rstrip('.')})"
            problems.append(f"model.config{'.' + where if where else ''}: {text}")
        raise UserError(
            f"The settings of family {family.name} are not valid: {'; '.join(problems)}.",
            "Correct them: model.config in a recipe, --config and --set on the command line.",
        ) from error
