"""The placement rules as data: what holds a layer back from INT8, and for which runtimes."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import Field, model_validator

from elastic_export.config.base import Schema
from elastic_export.config.problems import validated
from elastic_export.config.reading import parse_yaml
from elastic_export.errors import UserError, did_you_mean

__all__ = ["ATTENTION", "PlacementRules", "Rule", "in_force", "placement_rules", "read_rules"]

ATTENTION = "attention"
"""The rule that a recipe may lift for a whole network."""

_NEEDS = {"names": "layers", "positions": "most", "image": "most", "width": "below"}
_NEEDS |= {"group": "below"}

Count = Annotated[int, Field(ge=1)]


class Rule(Schema):
    """One rule; ``placement.yaml`` explains the kinds and their numbers."""

    kind: Literal["names", "positions", "image", "width", "group", "products"]
    layers: tuple[str, ...] = ()
    most: Count | None = None
    below: Count | None = None
    reason: str
    source: str

    @model_validator(mode="after")
    def _has_its_number(self) -> Rule:
        needed = _NEEDS.get(self.kind)
        if needed is not None and not getattr(self, needed):
            raise ValueError(f'a rule of the kind "{self.kind}" needs "{needed}"')
        return self


class Section(Schema):
    """The flavours of one family of runtimes and the rules that are in force for them."""

    flavours: tuple[str, ...]
    in_force: dict[str, bool]


class PlacementRules(Schema):
    """The whole of ``placement.yaml``."""

    rules: dict[str, Rule]
    sections: dict[str, Section]

    @model_validator(mode="after")
    def _sections_name_every_rule(self) -> PlacementRules:
        for name, section in self.sections.items():
            if set(section.in_force) != set(self.rules):
                odd = sorted(set(section.in_force) ^ set(self.rules))
                raise ValueError(f'the section "{name}" and the rules differ in "{odd[0]}"')
        if self.rules.get(ATTENTION) is None or self.rules[ATTENTION].kind != "products":
            raise ValueError(f'there must be a rule "{ATTENTION}" of the kind "products"')
        return self


@cache
def placement_rules() -> PlacementRules:
    """Return the rules that ship with the package."""
    path = files("elastic_export.quantize").joinpath("placement.yaml")
    return read_rules(path.read_text(encoding="utf-8"))


def read_rules(text: str) -> PlacementRules:
    """Check the text of a ``placement.yaml``.

    Raises:
        UserError: it is no valid YAML, a key is unknown or missing, a rule lacks its number, or a
            section does not name every rule.
    """
    where = "the placement rules placement.yaml"
    content = parse_yaml(text, where)
    values = content if isinstance(content, dict) else {}
    return validated(PlacementRules, values, where, "Correct the file in elastic_export/quantize.")


def in_force(flavour: str) -> frozenset[str]:
    """Return the names of the rules that are in force for a flavour.

    Raises:
        UserError: no section names the flavour.
    """
    sections = placement_rules().sections.values()
    for section in sections:
        if flavour in section.flavours:
            return frozenset(name for name, on in section.in_force.items() if on)
    known = [name for section in sections for name in section.flavours]
    raise UserError(f'There is no INT8 flavour "{flavour}".', did_you_mean(flavour, known))
