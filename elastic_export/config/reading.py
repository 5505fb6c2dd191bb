"""Read YAML the way its users mean it, and refuse what cannot be meant.

PyYAML follows YAML 1.1, where ``2:4`` is the number 124, ``on`` is true and ``1e9`` is text. Here
plain values follow YAML 1.2 (JSON's types), keys are text and may not come twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from elastic_export.errors import UserError

__all__ = ["parse_yaml", "read_mapping", "read_settings"]

_MAX_BYTES = 1 << 20
_MAX_VALUES = 100_000
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}


class _Loader(yaml.SafeLoader):
    """A safe loader with the plain values of YAML 1.2; merge keys do not exist there."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class's own form


def _construct_word(loader: _Loader, node: yaml.ScalarNode) -> bool | None:
    return _WORDS[node.value.lower()]


def _construct_number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    text = node.value.replace("_", "")
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        problem = f"the number {node.value} is too large"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    # 1e9 is how people write a large count; 1.0e9 stays the float that its point asks for.
    return int(number) if "." not in text and number.is_integer() else number


class _LooseLoader(_Loader):
    """Takes keys that are not text, as other systems' files have them, and makes them text."""


def _construct_loose_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: dict[Hashable, Any] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            problem = f"the key {key!r} is not text; put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if key in seen:
            problem = f'the key "{key}" is given twice'
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen[key] = None
    return loader.construct_mapping(node, deep=True)


_Loader.add_implicit_resolver(
    "!word", re.compile(r"(?:~|null|Null|NULL|true|True|TRUE|false|False|FALSE|)$"), None
)
_Loader.add_implicit_resolver(
    "!number",
    re.compile(r"[-+]?(?:\.\d+|\d[\d_]*(?:\.\d*)?)(?:[eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("!word", _construct_word)
_Loader.add_constructor("!number", _construct_number)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_LooseLoader.add_constructor("tag:yaml.org,2002:map", _construct_loose_mapping)


def parse_yaml(text: str, where: str, *, loose: bool = False) -> Any:
    """Return the value that ``text`` stands for.

    Args:
        text: One YAML document.
        where: What the text is, to begin an error with: ``the recipe my.yaml``.
        loose: Take keys of any type, as text; for files that other systems wrote.

    Raises:
        UserError: With the line and column of what is wrong.
    """
    try:
        value = yaml.load(text, Loader=_LooseLoader if loose else _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(
            f"{_upper(where)} is not valid YAML{place}: {error.problem}.",
            "Correct that place; indentation must be spaces and every key ends with a colon.",
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(
            f"{_upper(where)} is not valid YAML: {str(error).splitlines()[0]}.",
            "Save it as plain UTF-8 text with one key per line.",
        ) from error
    _refuse_endless(value, where)
    return value


def read_settings(path: Path) -> dict[str, Any]:
    """Return a network's settings: ours, or the configuration of the system that trained it.

    A file of the yacs kind may name others under ``BASE``; they lie beneath it, and what it says
    itself wins.

    Raises:
        UserError: As :func:`read_mapping`; also where files name each other in a circle.
    """
    return _with_bases(path, ())


def _with_bases(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise UserError(
            f"The settings {path} name themselves under BASE.", "Take the circle out of the files."
        )
    values = read_mapping(path, "settings", loose=True)
    bases = values.get("BASE")
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else []:
        if base:
            below = _with_bases(path.parent / str(base), (*above, path.resolve()))
            merged = _merged(merged, below)
    return _merged(merged, values)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        inner = result.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        result[key] = _merged(inner, value) if both and inner is not None else value
    return result


def read_mapping(path: Path, noun: str, *, loose: bool = False) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Args:
        path: The file.
        noun: What the file is: ``recipe``, ``target``.
        loose: As :func:`parse_yaml`.

    Raises:
        UserError: When it is missing, empty, not text, not YAML, or not a set of keys.
    """
    where = f"the {noun} {path}"
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise UserError(
                f"The file {path} has {size >> 20} MiB, which is not a {noun}.",
                f"Give the YAML file of the {noun}; a checkpoint goes into its model section.",
            )
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"The file {path} is not text, so it cannot be a {noun}.",
            f"Give the YAML file of the {noun}, saved as UTF-8.",
        ) from error
    except OSError as error:
        raise UserError(
            f"The {noun} {path} cannot be read: {error.strerror}.",
            "Check the path and its permissions.",
        ) from error
    value = parse_yaml(text, where, loose=loose)
    if value is None:
        raise UserError(
            f"The {noun} {path} is empty.",
            'Start from a shipped one; "elastic-export build --help" names them.',
        )
    if not isinstance(value, dict):
        raise UserError(
            f"The {noun} {path} holds a single {type(value).__name__} instead of keys.",
            "Write it as lines of the form key: value.",
        )
    return value


def _refuse_endless(value: Any, where: str) -> None:
    """Refuse anchors that contain themselves or unfold to more values than anyone writes."""
    count = 0
    pending = [value]
    while pending:
        item = pending.pop()
        count += 1
        if count > _MAX_VALUES:
            raise UserError(
                f"{_upper(where)} unfolds to more than {_MAX_VALUES} values.",
                "Write out what its anchors (&name, *name) repeat.",
            )
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
