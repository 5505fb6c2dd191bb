"""The application: which commands there are."""

from __future__ import annotations

import os
from typing import Annotated

import typer

import elastic_export
from elastic_export.cli import (
    bench,
    build,
    cache,
    compile,
    doctor,
    estimate,
    export,
    extract,
    inspect,
    report,
    targets,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="elastic-export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(build.build)
app.command()(extract.extract)
app.command()(export.export)
app.command("compile")(compile.compile_engines)
app.command()(bench.bench)
app.command()(estimate.estimate)
app.command()(report.report)
app.command()(inspect.inspect)
app.add_typer(targets.app, name="targets")
app.command()(doctor.doctor)
app.add_typer(cache.app, name="cache")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"elastic-export {elastic_export.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """From an elastic vision checkpoint to verified, sparse, INT8, measured networks.

    Exit codes: 0 done, 1 something you can correct, 2 wrong usage, 3 a check failed, 70 a bug,
    130 interrupted.
    """


def main() -> None:
    """Run the command line."""
    # Read once when PyTorch loads. Threads that spin while they wait slow each other down many
    # times over when anything else needs a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="elastic-export")
