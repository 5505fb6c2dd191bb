"""Options that several commands share, so that each means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "JsonOption",
    "OutOption",
    "QuietOption",
    "SetOption",
    "StoreOption",
    "TargetArgument",
    "VerboseOption",
]

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON document; progress is on stderr."),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes; the shortest result.")
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show what libraries print, and tracebacks of bugs."),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help="Where finished stages are kept. [default: $ELASTIC_EXPORT_HOME or "
        "~/.cache/elastic-export]",
        show_default=False,
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where results go.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one value, such as train.steps=200; VALUE is YAML. May be repeated.",
        show_default=False,
    ),
]
TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="NAME[+dla][@SOFTWARE[:MODE]] or a YAML file.", show_default=False
    ),
]
