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
            "--config", metavar="FILE", help="The family's settings (YAML).", show_default=False
        ),
    ] = None,
    override: SetOption = None,
    out: OutOption = Path("elastic-export-out"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Extract one descendant of a supernet checkpoint as a plain network.

    --set changes a value of the family's settings, such as depth=12.
    """
    with command(as_json, quiet, verbose) as output:
        from elastic_export.cli.tables import facts
        from elastic_export.config.overrides import apply_overrides
        from elastic_export.config.reading import read_mapping

        settings = read_mapping(config, "family settings") if config else {}
        settings = apply_overrides(settings, override or ())
        wanted = _spec(spec)

        from elastic_export import pipeline

        told = pipeline.extract_one(
            checkpoint, family=family, format=form, config=settings, spec=wanted, out=out
        )
        output.result(told, facts(told), short=str(told.get("path", out)))


def _spec(text: str | None) -> dict[str, Any] | str | None:
    """Read a spec given as a name, as YAML, or in a file."""
    from elastic_export.config.reading import parse_yaml, read_mapping

    if text is None:
        return None
    if Path(text).is_file():
        return read_mapping(Path(text), "spec")
    value = parse_yaml(text, "the spec")
    return value if isinstance(value, dict) else text
