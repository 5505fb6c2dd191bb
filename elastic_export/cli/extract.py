"""``elastic-export extract``: one descendant out of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, OutOption, QuietOption, SetOption, VerboseOption

__all__ = ["extract"]


def extract(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", show_default=False)],
    spec: Annotated[
        str | None,
        typer.Option(
            "--spec",
            metavar="SPEC",
            help="A named spec, min, max, a YAML file, or YAML such as '{depth: 6}'. "
            "[default: max]",
            show_default=False,
        ),
    ] = None,
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
            help="Settings (YAML): the family's, or those of the system that trained the network.",
            show_default=False,
        ),
    ] = None,
    override: SetOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="digits, or a folder with train/ and val/: to estimate BatchNorm statistics on.",
            show_default=False,
        ),
    ] = None,
    out: OutOption = Path("elastic-export-out"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Extract one descendant of a supernet checkpoint as a plain network.

    --set changes a value of the family's settings, such as depth=12.
    """
    with command(as_json, quiet, verbose) as output:
        from elastic_export.cli.inputs import data_of, settings_of
        from elastic_export.cli.tables import facts

        settings = settings_of(config, override)
        wanted = _spec(spec)
        images = data_of(data)

        with output.task("Loading PyTorch"):
            from elastic_export import pipeline

        told = pipeline.extract_one(
            checkpoint,
            family=family,
            format=form,
            config=settings,
            spec=wanted,
            out=out,
            data=images,
        )
        output.result(told, facts(told), short=str(told.get("path", out)))


def _spec(text: str | None) -> dict[str, Any] | str | None:
    """Read a spec given as a name, as YAML, or in a file."""
    from elastic_export.config.reading import parse_yaml, read_mapping
    from elastic_export.errors import UserError

    if text is None:
        return None
    if Path(text).suffix in (".yaml", ".yml"):
        return read_mapping(Path(text), "spec")
    value = parse_yaml(text, "the spec")
    if isinstance(value, list):
        raise UserError(
            "--spec is a list, but a spec names its choices.",
            "Write a name, or choices such as '{depth: 6}'.",
        )
    return value if isinstance(value, dict) else text
