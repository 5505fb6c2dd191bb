"""``elastic-export build``: the whole flow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import (
    JsonOption,
    OutOption,
    QuietOption,
    SetOption,
    StoreOption,
    VerboseOption,
)

if TYPE_CHECKING:
    from rich.table import Table

    from elastic_export.cli.output import Output
    from elastic_export.errors import ElasticExportError
    from elastic_export.pipeline.flow import PlanRow

__all__ = ["build"]

_KEPT = (
    "Finished stages and the state of the running one are kept in {root}; the same command goes on "
    "from there."
)


def build(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A recipe file or the name of a shipped one. [default: digits]",
            show_default=False,
        ),
    ] = None,
    out: OutOption = Path("elastic-export-out"),
    store: StoreOption = None,
    override: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages and what is there already.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="STAGE", help="Stop after this stage.", show_default=False),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make finished stages again (with --only: that one).")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a recipe: train, search, extract, sparsify, quantize, export, compile, measure, report.

    Without a recipe, the shipped digits recipe runs on real handwritten digits.
    """
    with command(as_json, quiet, verbose) as output:
        from elastic_export.artifacts.store import Store
        from elastic_export.cli.tables import titled
        from elastic_export.config.loader import load_recipe

        # Read before the heavy imports: a misspelt key is told at once.
        wanted = load_recipe(recipe, override or ())
        shelf = Store(store)
        output.kept = _KEPT.format(root=shelf.root)

        with output.task("Loading PyTorch"):
            from elastic_export import pipeline

        if dry_run:
            rows = pipeline.plan(wanted, shelf)
            output.result(
                {"plan": [row.to_dict() for row in rows]},
                titled(f"Plan of {wanted.name}", _stages(rows)),
                short=f"{sum(row.cached is not True for row in rows)} stages to run",
            )
            return
        built = pipeline.build(
            wanted, out=out, store=shelf, progress=output.progress, fresh=fresh, only=only
        )
        data = {
            "out": str(out),
            "store": str(shelf.root),
            "stages": [row.to_dict() for row in built.rows],
            "files": {name: str(path) for name, path in built.files.items()},
            "result": built.result.model_dump(mode="json") if built.result else None,
            "failures": [{"what": each.what, "fix": each.fix} for each in built.failures],
        }
        if built.result is None:
            done = [row for row in built.rows if row.cached is not None]
            told = titled(f"{wanted.name} up to {only}", _stages(done))
            output.result(data, told, short=str(shelf.root))
            return
        from elastic_export.report.terminal import render

        output.result(data, render(built.result, output.width), short=str(out / "report.html"))
        output.note(f"Report: {out / 'report.html'}")
        _tell_failures(built.failures, output)


def _tell_failures(failures: list[ElasticExportError], output: Output) -> None:
    """Say what went wrong on boards, after the report of all the rest; the worst code counts."""
    for failure in failures if not output.as_json else ():  # the document holds them
        output.error("board", failure.what, failure.fix, failure.exit_code)
    if failures:
        raise typer.Exit(max(failure.exit_code for failure in failures))


def _stages(rows: list[PlanRow]) -> Table:
    from elastic_export.cli.tables import table

    words = {True: "in the store", False: "to do", None: "to do, after the ones above"}
    lines = []
    for row in rows:
        state = words[row.cached] if row.seconds is None else f"done in {row.seconds:.1f} s"
        lines.append((row.stage, row.detail, state))
    return table(("stage", "of", "state"), lines)
