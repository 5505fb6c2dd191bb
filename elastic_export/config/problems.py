"""Turn what pydantic found wrong into one sentence of what and one of what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from elastic_export.config.base import Schema
from elastic_export.errors import UserError, did_you_mean

__all__ = ["validated"]

S = TypeVar("S", bound=Schema)

_SHOWN = 4
_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
}


def validated(schema: type[S], values: Mapping[str, Any], where: str, change: str) -> S:
    """Check ``values`` against ``schema`` without guessing: ``"3"`` is not 3, nor is ``true``.

    Args:
        schema: What the values must be.
        values: As read from YAML.
        where: What they are, to begin an error with: ``the recipe my.yaml``.
        change: How to change one, to end an error with.

    Raises:
        UserError: Naming every wrong key by its full dotted path.
    """
    _refuse_the_future(schema, values, where)
    try:
        # By way of JSON, since only there "strict" lets a list stand for a tuple.
        return schema.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problems = _problems(schema, values, error.errors(include_url=False))
    said = [what for what, _ in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        said.append(f"{len(problems) - _SHOWN} more")
    hints = list(dict.fromkeys(fix for _, fix in problems[:_SHOWN] if fix))
    raise UserError(f"In {where}, {'; '.join(said)}.", " ".join(hints) or change)


def _refuse_the_future(schema: type[Schema], values: Mapping[str, Any], where: str) -> None:
    if "schema_version" not in schema.model_fields:
        return
    known = max(get_args(schema.model_fields["schema_version"].annotation))
    asked = values.get("schema_version", known)
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > known:
        raise UserError(
            f"{where[:1].upper()}{where[1:]} has schema_version {asked}, but this version of "
            f"elastic-export reads up to {known}.",
            "Upgrade it with: pip install --upgrade elastic-export",
        )


def _problems(
    schema: type[Schema], values: Mapping[str, Any], errors: list[ErrorDetails]
) -> list[tuple[str, str]]:
    by_path: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for error in errors:
        by_path.setdefault(_real_path(values, error), []).append(error)
    return [_problem(schema, path, found) for path, found in by_path.items()]


def _real_path(values: Any, error: ErrorDetails) -> tuple[str | int, ...]:
    """Drop from pydantic's location the names it gives to the branches of a union."""
    path: list[str | int] = []
    for number, part in enumerate(error["loc"]):
        if isinstance(values, dict) and part in values:
            values = values[str(part)]
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif error["type"] != "missing" or number + 1 < len(error["loc"]):
            continue
        path.append(part)
    return tuple(path)


def _problem(
    schema: type[Schema], path: tuple[str | int, ...], errors: list[ErrorDetails]
) -> tuple[str, str]:
    name = ".".join(str(part) for part in path)
    first = errors[0]
    kind = first["type"]
    if kind == "extra_forbidden":
        return f'the key "{name}" is unknown', _suggest(schema, path)
    if kind == "missing" and isinstance(path[-1], int):
        parent = ".".join(str(part) for part in path[:-1])
        return f'"{parent}" has too few values', ""
    if kind == "missing":
        return f'the key "{name}" is missing', ""
    if kind == "value_error":
        # A rule across several keys; its own words name them.
        return f"{first['ctx']['error']}", ""
    if kind in ("too_long", "too_short"):
        size, limits = first["ctx"]["actual_length"], first["ctx"]
        limit = limits.get("max_length", limits.get("min_length"))
        return f'"{name}" has {size} values, but should have {limit}', ""
    given = _shown(first["input"])
    wanted = [_KINDS[error["type"]] for error in errors if error["type"] in _KINDS]
    if len(wanted) == len(errors):
        lone = isinstance(first["input"], (str, int, float)) and wanted == ["a list"]
        hint = f"Write it as a list: [{first['input']}]." if lone else ""
        return f'"{name}" should be {" or ".join(dict.fromkeys(wanted))}, not {given}', hint
    if kind == "literal_error":
        known = first["ctx"]["expected"]
        words = [word.strip("'") for word in known.replace(" or ", ", ").split(", ")]
        hint = did_you_mean(str(first["input"]), words)
        return f'"{name}" should be {known}, not {given}', "" if "Known" in hint else hint
    told = first["msg"].replace("Input should", "should").replace("String should", "should")
    return f'"{name}" {told[:1].lower()}{told[1:]}, but is {given}', ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a section of keys"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f'the text "{value[:40]}"'
    return "empty" if value is None else json.dumps(value)


def _suggest(schema: type[Schema], path: tuple[str | int, ...]) -> str:
    *above, wrong = (str(part) for part in path)
    siblings = _keys_at(schema, above)
    hint = did_you_mean(wrong, siblings)
    if not hint.startswith("Did"):
        elsewhere = [keys for keys in _all_paths(schema) if keys[-1] == wrong]
        if len(elsewhere) == 1:
            return f'Did you mean "{".".join(elsewhere[0])}"?'
        return hint
    near = hint.split('"')[1]
    return f'Did you mean "{".".join([*above, near])}"?'


def _keys_at(schema: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        for name, child in _children(schema):
            if name == part and child is not None:
                schema = child
    return [name for name, _ in _children(schema)]


def _all_paths(schema: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, child in _children(schema):
        yield (name,)
        if child is not None:
            for rest in _all_paths(child):
                yield (name, *rest)


def _children(schema: type[BaseModel]) -> list[tuple[str, type[BaseModel] | None]]:
    return [
        (field.alias or name, _schema_in(field.annotation))
        for name, field in schema.model_fields.items()
    ]


def _schema_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_schema_in(argument) for argument in get_args(annotation))
    return next((schema for schema in found if schema is not None), None)
