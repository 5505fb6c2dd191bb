"""``elastic-export inspect``: what a file or bundle is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, VerboseOption

__all__ = ["inspect"]


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A checkpoint, a descendant, an ONNX file or a bundle folder.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say what a file is, and why it cannot be used if it cannot."""
    with command(as_json, quiet, verbose) as output:
        from elastic_export import pipeline
        from elastic_export.cli.tables import facts, titled

        told = pipeline.inspect(path)
        output.result(told, titled(str(path), facts(told)), short=str(told.get("kind", "")))
