"""What ``inspect`` found, shortened for people; ``--json`` holds all of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["readable"]

_MOST_LINES = 24
_LONGEST = 400
_COUNTS = ("params", "values")


def readable(told: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten what is long: axes by kind, keys by reason, settings that are lists of lists.

    Args:
        told: What ``pipeline.inspect`` returns; other kinds of files than supernets and plain
            checkpoints stay as they are.

    Returns:
        The same in the same order, fit for one screen.
    """
    short: dict[str, Any] = {}
    for name, value in told.items():
        if name == "axes" and isinstance(value, Mapping):
            short["descendants"] = _count(value)
            short["axes"] = _axes(value)
        elif name == "config" and isinstance(value, Mapping):
            short["config"] = {key: _setting(item) for key, item in value.items()}
        elif name == "macs" and isinstance(value, list):
            short["macs"] = " to ".join(_number(count) for count in dict.fromkeys(value))
        elif name in _COUNTS and isinstance(value, int):
            short[name] = _number(value)
        elif name == "zeros" and isinstance(value, Mapping):
            short["zeros"] = _zeros(value)
        elif name == "ignored" and isinstance(value, Mapping):
            short["ignored"] = "\n".join(_ignored(reason, keys) for reason, keys in value.items())
        elif name == "official_costs" and isinstance(value, Mapping):
            short["official costs"] = {spec: _pairs(costs) for spec, costs in value.items()}
        elif name == "notes" and isinstance(value, list):
            short["notes"] = "\n".join(value)
        elif name == "unusable" and isinstance(value, Mapping):
            short["not usable yet"] = value.get("what", "")
            short["what to do"] = value.get("fix", "")
        else:
            short[name] = value
    return {name: value for name, value in short.items() if value not in ("", [], {}, None)}


def _axes(axes: Mapping[str, list[Any]]) -> dict[str, str]:
    """One line per kind of axis: how many there are and what may be chosen."""
    kinds: dict[str, dict[str, int]] = {}
    for name, choices in axes.items():
        listed = ", ".join(f"{c:.4g}" if isinstance(c, float) else str(c) for c in choices)
        kind = kinds.setdefault(name.rpartition(".")[2], {})
        kind[listed] = kind.get(listed, 0) + 1
    lines = {}
    for kind_name, kind in kinds.items():
        several = sum(kind.values()) > 1
        parts = [f"{count} x {listed}" if several else listed for listed, count in kind.items()]
        lines[kind_name] = _cut("; ".join(parts))
    return lines


def _count(axes: Mapping[str, list[Any]]) -> str:
    """How many descendants there are at most; choices of blocks that are left out count too."""
    number = math.prod(len(choices) for choices in axes.values())
    return str(number) if number < 10_000 else f"up to 10^{math.floor(math.log10(number))}"


def _zeros(zeros: Mapping[str, float]) -> dict[str, str] | str:
    if not zeros:
        return "none"
    mean = sum(zeros.values()) / len(zeros)
    lines = {name: f"{share:.1%}" for name, share in list(zeros.items())[:_MOST_LINES]}
    head = f"{len(zeros)} tensors, {min(zeros.values()):.1%} to {max(zeros.values()):.1%}, "
    lines = {"of": f"{head}{mean:.1%} on average", **lines}
    if len(zeros) > _MOST_LINES:
        lines["..."] = f"{len(zeros) - _MOST_LINES} more; --json lists all"
    return lines


def _ignored(reason: str, names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
    return f"{len(listed)} {'key' if len(listed) == 1 else 'keys'} ({shown}): {reason}"


def _pairs(costs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in costs.items())


def _setting(value: Any) -> Any:
    if isinstance(value, Mapping):
        return f"{len(value)} entries; --json lists them" if value else None
    if isinstance(value, list) and any(isinstance(item, (list, Mapping)) for item in value):
        return _cut(str(value).replace("'", ""))
    return value


def _number(count: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return str(count)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...; --json lists all"
