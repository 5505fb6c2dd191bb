"""``elastic-export bench``: how fast networks are, on this machine or on boards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, VerboseOption
from elastic_export.errors import UserError, did_you_mean
from elastic_export.measure.marks import WRONG_LOGITS
from elastic_export.pipeline.benching.names import RUNNERS, RunnerName

if TYPE_CHECKING:
    from elastic_export.cli.output import Output

__all__ = ["bench"]


def bench(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Bundle folders; on this machine also ONNX files and descendants.",
            show_default=False,
        ),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="USER@BOARD", help="Measure there over ssh. May be repeated."),
    ] = None,
    runner: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"On this machine: what runs it, one of {', '.join(RUNNERS)}; without it a "
            "bundle's own runtime where that and its GPU are here, else onnxruntime, and torch for "
            "a descendant. May be repeated.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a runner on the CPU.")] = 1,
    precision: Annotated[
        list[str] | None, typer.Option(help="Only this one. May be repeated.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="On boards: of each model; 15 unless given.", show_default=False
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(help="On boards: the interpreter; python3 unless given.", show_default=False),
    ] = None,
    ssh_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For boards: instead of ~/.ssh/config.", show_default=False
        ),
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="For boards: seconds to wait for a lost connection; 300 unless given.",
            show_default=False,
        ),
    ] = None,
    no_clocks: Annotated[
        bool, typer.Option("--no-clocks", help="On boards: leave the clocks alone.")
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="On boards: measure finished models again; here: build engines again."
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the latency of networks, all of them interleaved in one run.

    On this machine every path is run by every runner that takes it; TensorRT engines go beside the
    bundle, and a bundle's sample images are checked first. On boards the script of the bundle
    builds the engines, checks the sample images, pins the clocks where it may, and measures; a lost
    connection loses nothing, and the same command goes on where it was.
    """
    with command(as_json, quiet, verbose) as output:
        if not on:
            _refuse_boards_options(
                {
                    "--seconds": seconds,
                    "--python": python,
                    "--ssh-config": ssh_config,
                    "--patience": patience,
                    "--no-clocks": no_clocks or None,
                }
            )
            _bench_here(
                output,
                paths,
                runners=_known(runner or ()),
                precisions=tuple(precision or ()),
                threads=threads,
                fresh=fresh,
            )
            return
        if runner:
            raise UserError(
                "--runner chooses what runs networks on this machine, and --on names another.",
                "Leave one of the two away.",
            )
        from elastic_export import pipeline
        from elastic_export.cli.benched_on import lines, tables
        from elastic_export.measure.remote import VisitOptions

        output.kept = "Finished results are kept on the board; the same command goes on there."
        options = VisitOptions(
            seconds=15.0 if seconds is None else seconds,
            precisions=tuple(precision or ()),
            arguments=(
                f"--threads={threads}",
                *(["--no-clocks"] if no_clocks else []),
                *(["--fresh"] if fresh else []),
            ),
            python=python or "python3",
        )
        found = pipeline.bench_on(
            paths,
            on,
            options,
            ssh_config=ssh_config,
            patience=300.0 if patience is None else patience,
            progress=output.progress,
        )
        output.result(found, tables(found), short="\n".join(lines(found)))
        _explain_failures(found, output)
        _end_badly_where_a_model_did(found)


def _refuse_boards_options(given: dict[str, object]) -> None:
    """Tell an option that would do nothing on this machine."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise UserError(
            f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} for boards, and none is "
            "named.",
            "Name one with --on, or leave that out.",
        )


def _known(names: Sequence[str]) -> list[RunnerName]:
    """Refuse a name that no runner has, before anything heavy is loaded."""
    for name in names:
        if name not in RUNNERS:
            raise UserError(f'There is no runner "{name}".', did_you_mean(name, list(RUNNERS)))
    return [name for name in RUNNERS if name in names]


def _bench_here(output: Output, paths: list[Path], **how: Any) -> None:
    """Measure on this machine; exit with 3 where a sample gave other logits or a check failed."""
    from elastic_export.cli.benched import lines, tables

    output.kept = "Engines that were built are kept; nothing of the measurement is."
    with output.task("Loading PyTorch"):
        from elastic_export import pipeline

        bench_here = pipeline.bench_here
    found = bench_here(paths, **how, progress=output.progress)
    output.result(found, tables(found), short="\n".join(lines(found)))
    wrong = any(WRONG_LOGITS in model["marks"] for model in found["models"])
    if wrong or any(one["kind"] == "check" for one in found["left_out"]):
        raise typer.Exit(3)


def _end_badly_where_a_model_did(found: dict[str, Any]) -> None:
    """Exit with 3 where a sample gave other logits, with 1 where a model could not be measured."""
    models = [
        model for part in found["boards"].values() for model in part["result"]["models"].values()
    ]
    if any(WRONG_LOGITS in model["flags"] for model in models if not model.get("error")):
        raise typer.Exit(3)
    if any(model.get("error") for model in models):
        raise typer.Exit(1)


def _explain_failures(found: dict[str, Any], output: Output) -> None:
    """Tell every board that failed; the first one decides the exit code."""
    if found["failed"] and output.as_json:
        raise typer.Exit(1)  # the document says it, and stdout holds one document
    for destination in found["failed"][1:]:
        error = found["boards"][destination]["error"]
        output.note(f"{error['what']} {error['fix']}")
    for destination in found["failed"][:1]:
        error = found["boards"][destination]["error"]
        raise UserError(error["what"], error["fix"])
