"""``elastic-export bench``: how fast a bundle is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, VerboseOption

__all__ = ["bench"]


def bench(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.", show_default=False)
    ],
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runner.")] = 1,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure a bundle's latency on this machine with ONNX Runtime, its precisions interleaved."""
    with command(as_json, quiet, verbose) as output:
        from elastic_export import pipeline
        from elastic_export.cli.tables import facts

        told = pipeline.bench_bundle(bundle, threads=threads, progress=output.progress)
        output.result(told, facts(told))
