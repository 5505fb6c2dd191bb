"""What each runtime's ONNX parser takes, as reviewed data: one YAML per release, a source per fact.

A release holds what changed since the one it is ``like``. A version between two files is read as
the older of them. ``verified: false`` marks what was inferred; a finding from it is a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml
from pydantic import Field

from elastic_export.config.base import Schema
from elastic_export.config.problems import validated
from elastic_export.errors import UserError

__all__ = ["Fact", "Parser", "parser_of", "releases"]


class Fact(Schema):
    """A yes or no, or the newest opset, with its origin."""

    value: bool | int
    source: str
    verified: bool = True


class _Operators(Schema):
    """``complete`` says that an operator which is not listed is not known to the parser."""

    complete: bool
    source: str
    known: tuple[str, ...] = ()


class _Added(Schema):
    known: tuple[str, ...]
    source: str


class _Release(Schema):
    runtime: str
    since: str
    like: str | None = None
    max_opset: Fact | None = None
    operators: _Operators | None = None
    adds: _Added | None = None
    lacks: dict[str, str] = Field(default_factory=dict)
    facts: dict[str, Fact] = Field(default_factory=dict)


@dataclass(frozen=True)
class Parser:
    """One release of a runtime's parser.

    Attributes:
        name: ``tensorrt-8.5``, the file the facts are from.
        max_opset: The newest opset it reads; None where nothing limits it.
        known: The operators it is known to have; empty where it has those of the opset.
        complete: An operator that is not in ``known`` is refused.
        operators_source: Where ``known`` is from.
        lacks: Operator it does not have to the source of that.
        facts: Name of a rule to whether it holds.
    """

    name: str
    max_opset: Fact | None
    known: frozenset[str]
    complete: bool
    operators_source: str
    lacks: Mapping[str, str]
    facts: Mapping[str, Fact]

    def fact(self, name: str) -> Fact | None:
        """Return the rule if it holds for this release, else None."""
        found = self.facts.get(name)
        return found if found is not None and found.value else None


@cache
def releases() -> tuple[str, ...]:
    """Name every release that has a file."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


def parser_of(runtime: str, version: str) -> Parser:
    """Find the facts of a runtime's release.

    Args:
        runtime: ``tensorrt``, ``tensorrt-rtx`` or ``onnxruntime``.
        version: ``8.5`` or ``8.5.2``; a release without a file is read as the newest before it.

    Raises:
        UserError: The runtime is unknown, or the release is older than all that were compared.
    """
    wanted = _number(version)
    of_runtime = [name for name in releases() if _read(name).runtime == runtime]
    older = [name for name in of_runtime if _number(_read(name).since) <= wanted]
    if not older:
        oldest = min((_read(name).since for name in of_runtime), key=_number, default="")
        raise UserError(
            f'Nothing is known of what the parser of {runtime} "{version}" takes.',
            f"Use {runtime} {oldest} or newer." if oldest else "Use TensorRT or ONNX Runtime.",
        )
    return _parser(max(older, key=lambda name: _number(_read(name).since)))


@cache
def _parser(name: str) -> Parser:
    release = _read(name)
    below = _parser(release.like) if release.like else None
    operators, added = release.operators, release.adds
    known = set(below.known if below else ()) | set(operators.known if operators else ())
    lacks = {**(below.lacks if below else {}), **release.lacks}
    if added is not None:
        known |= set(added.known)
        lacks = {op: source for op, source in lacks.items() if op not in added.known}
    source = operators.source if operators else below.operators_source if below else ""
    return Parser(
        name=name,
        max_opset=release.max_opset or (below.max_opset if below else None),
        known=frozenset(known - set(release.lacks)),
        complete=operators.complete if operators else bool(below and below.complete),
        operators_source=source,
        lacks=lacks,
        facts={**(below.facts if below else {}), **release.facts},
    )


@cache
def _read(name: str) -> _Release:
    text = (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
    what = f"the parser facts {name}"
    return validated(_Release, yaml.safe_load(text), what, "Install elastic-export again.")


def _number(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)(?:\.(\d+))?", version)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, 0)
