"""``elastic-export export``: one descendant as a bundle for one target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, OutOption, QuietOption, VerboseOption

__all__ = ["export"]


def export(
    descendant: Annotated[
        Path,
        typer.Argument(
            metavar="DESCENDANT", help="What extract or build wrote.", show_default=False
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--target", "-t", metavar="TARGET", help="NAME[+dla][@SOFTWARE[:MODE]] or a file."
        ),
    ] = "host-cpu",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="digits, or a folder with train/ and val/: to calibrate INT8 on and to measure "
            "accuracy. Without it only the floating-point files are written.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        str, typer.Option(metavar="NAME", help="Calibration recipe: a shipped one or a file.")
    ] = "max",
    out: OutOption = Path("elastic-export-out"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Export a descendant to verified ONNX for one target."""
    with command(as_json, quiet, verbose) as output:
        from elastic_export.cli.inputs import data_of
        from elastic_export.cli.tables import facts
        from elastic_export.config.loader import load_calibration, load_target

        # Wrong names are told before the heavy imports.
        load_target(target)
        load_calibration(calibration)
        images = data_of(data)

        with output.task("Loading PyTorch"):
            from elastic_export import pipeline

        told = pipeline.export_one(
            descendant,
            target=target,
            out=out,
            data=images,
            calibration=calibration,
            progress=output.progress,
        )
        output.result(told, facts(told), short=str(told.get("folder", out)))
