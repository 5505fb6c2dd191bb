"""``elastic-export cache``: what the store holds, and making room in it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, StoreOption, VerboseOption

__all__ = ["app"]

app = typer.Typer(help="The store: list it, measure it, make room.", no_args_is_help=True)

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@app.command("list")
def list_cache(
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List finished stages, the most recently used first."""
    with command(as_json, quiet, verbose) as output:
        from dataclasses import asdict

        from elastic_export.artifacts.store import Store
        from elastic_export.cli.tables import size, table, titled

        shelf = Store(store)
        entries = shelf.entries()
        rows = [(entry.stage, entry.key, size(entry.bytes), _when(entry.used)) for entry in entries]
        drawn = titled(str(shelf.root), table(("stage", "key", "size", "last used"), rows))
        output.result(
            {"root": str(shelf.root), "entries": [asdict(entry) for entry in entries]},
            drawn if entries else f"{shelf.root} is empty.",
            short="\n".join(entry.key for entry in entries),
        )


@app.command("size")
def cache_size(
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say how much space the store takes, unfinished work included."""
    with command(as_json, quiet, verbose) as output:
        from elastic_export.artifacts.store import Store
        from elastic_export.cli.tables import size

        shelf = Store(store)
        total = shelf.size()
        data = {"root": str(shelf.root), "bytes": total, "entries": len(shelf.entries())}
        output.result(data, f"{size(total)} in {shelf.root}", short=str(total))


@app.command("prune")
def prune_cache(
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Remove what was not used for so long: 30d, 12h, 2w.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Remove finished and unfinished stages; what a running process works on stays."""
    if everything == (older_than is not None):
        raise typer.BadParameter("give either --older-than AGE or --all")
    age = _age(older_than) if older_than is not None else None
    with command(as_json, quiet, verbose) as output:
        from elastic_export.artifacts.store import Store
        from elastic_export.cli.tables import size

        shelf = Store(store)
        freed = shelf.prune(age)
        data = {"root": str(shelf.root), "freed_bytes": freed, "left_bytes": shelf.size()}
        output.result(data, f"Freed {size(freed)} in {shelf.root}", short=str(freed))


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if not match:
        raise typer.BadParameter(f'"{text}" is not an age such as 30d, 12h or 2w')
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
