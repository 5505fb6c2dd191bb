"""``elastic-export inspect``: what a file or bundle is, and whether a target takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, SetOption, VerboseOption
from elastic_export.errors import CheckFailed

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
    family: Annotated[
        str | None,
        typer.Option(help="Family of the network, where the file does not tell.", metavar="NAME"),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help="Format of the checkpoint.")
    ] = "auto",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Settings the file does not hold (YAML).",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="NAME",
            help="Hold an ONNX file against what this target's runtime takes, such as "
            "orin-nano-8gb@jp5.1; exit code 3 where it refuses the file.",
            show_default=False,
        ),
    ] = None,
    override: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say what a file is, and why it cannot be used if it cannot.

    --set gives a setting the file does not hold, such as heads=[12].
    """
    with command(as_json, quiet, verbose) as output:
        from elastic_export.cli.inputs import settings_of
        from elastic_export.cli.inspected import readable
        from elastic_export.cli.inspected_bundle import bundle_table
        from elastic_export.cli.linted import linted
        from elastic_export.cli.tables import facts, titled

        if target is not None:
            told = linted(path, target)
            output.result(told.to_json(), told.table(), short=told.verdict)
            if told.refused:
                raise typer.Exit(CheckFailed.exit_code)
            return
        settings = settings_of(config, override)
        with output.task("Loading PyTorch"):
            from elastic_export import pipeline

        from elastic_export.engine.bundle_manifest import KIND

        found = pipeline.inspect(path, family=family, format=form, config=settings)
        kind = str(found.get("kind", ""))
        body = bundle_table(found) if kind == KIND else facts(readable(found))
        output.result(found, titled(str(path), body), short=kind)
