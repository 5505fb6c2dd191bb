"""Tables and facts for people; the JSON form of the same is the caller's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from elastic_export.cli.output import spelled_out

__all__ = ["facts", "printable", "size", "table", "titled", "told_table"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def titled(title: str, body: RenderableType) -> Group:
    """Set a title above a table; a table's own title would be wrapped to the table's width."""
    return Group(Text(title, style="bold"), body)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Lay out rows under headers; columns of numbers are aligned to the right."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, header in enumerate(headers):
        numbers = bool(rows) and all(isinstance(row[column], (int, float)) for row in rows)
        drawn.add_column(header, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    return drawn


def told_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Lay out rows as :func:`table` does, without the columns that no row has a value for."""
    kept = [i for i in range(len(headers)) if any(row[i] is not None for row in rows)]
    return table([headers[i] for i in kept], [[row[i] for i in kept] for row in rows])


def facts(data: Mapping[str, Any]) -> Table:
    """Lay out one line per fact; sections inside are written as dotted names."""
    drawn = Table(box=None, show_header=False, pad_edge=False)
    drawn.add_column(no_wrap=True, style="dim")
    drawn.add_column(overflow="fold")
    for name, value in _flat(data):
        drawn.add_row(Text(printable(name)), Text(printable(value)))
    return drawn


def size(number: float) -> str:
    """Write bytes for people: ``size(3_500_000)`` is ``"3.3 MiB"``."""
    unit = 0
    while number >= 1024 and unit + 1 < len(_UNITS):
        number /= 1024
        unit += 1
    return f"{number:.0f} B" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


def printable(value: object) -> str:
    """Write a value for people, whatever it holds."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None or value in ({}, [], ()):
        return "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(printable(item) for item in value)
    return spelled_out(str(value))


def _flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
