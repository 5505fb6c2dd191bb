"""``elastic-export report``: write the report of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, VerboseOption

__all__ = ["report"]


def report(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The folder of a run, or its report.json."),
    ] = Path("elastic-export-out"),
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Where the report goes. [default: where the run is]",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write report.html, the plots and results.csv from a run's report.json, and show the table."""
    with command(as_json, quiet, verbose) as output:
        from elastic_export.report.load import load_result
        from elastic_export.report.terminal import render
        from elastic_export.report.write import write_report

        result = load_result(source)
        folder = out or (source if source.is_dir() else source.parent)
        files = write_report(result, folder)
        output.result(
            {"files": {name: str(path) for name, path in files.items()}},
            render(result, output.width),
            short=str(folder / "report.html"),
        )
        output.note(f"Report: {folder / 'report.html'}")
