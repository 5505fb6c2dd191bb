"""``elastic-export bench``: how fast networks are, on this machine or on boards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, VerboseOption
from elastic_export.errors import UserError, did_you_mean
from elastic_export.pipeline.benching.names import RUNNERS, RunnerName

if TYPE_CHECKING:
    from rich.console import RenderableType

    from elastic_export.cli.output import Output

__all__ = ["bench"]

_HEADERS = (
    "model",
    "median ms",
    "p90 ms",
    "p99 ms",
    "GPU ms",
    "mJ",
    "logits",
    "measurement",
    "marks",
)


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
    seconds: Annotated[float, typer.Option(min=0.1, help="On boards: of each model.")] = 15.0,
    python: Annotated[str, typer.Option(help="On boards: the interpreter.")] = "python3",
    ssh_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of ~/.ssh/config.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a lost connection.")
    ] = 300.0,
    no_clocks: Annotated[
        bool, typer.Option("--no-clocks", help="Leave the board's clocks alone.")
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
        from elastic_export.measure.remote import VisitOptions

        output.kept = "Finished results are kept on the board; the same command goes on there."
        options = VisitOptions(
            seconds=seconds,
            precisions=tuple(precision or ()),
            arguments=(
                f"--threads={threads}",
                *(["--no-clocks"] if no_clocks else []),
                *(["--fresh"] if fresh else []),
            ),
            python=python,
        )
        found = pipeline.bench_on(
            paths,
            on,
            options,
            ssh_config=ssh_config,
            patience=patience,
            progress=output.progress,
        )
        output.result(found, _tables(found))
        _explain_failures(found, output)
        _end_badly_where_a_model_did(found)


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
    wrong = any("wrong_logits" in model["marks"] for model in found["models"])
    if wrong or any(one["kind"] == "check" for one in found["left_out"]):
        raise typer.Exit(3)


def _tables(found: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    from elastic_export.cli.tables import table, titled

    parts: list[RenderableType] = []
    for destination, part in found["boards"].items():
        if "error" in part:
            continue
        board = part["result"]["board"]
        where = [board["model"], board["power_mode"]]
        where += [f"{name} {board[key]}" for name, key in _SOFTWARE if board.get(key)]
        title = f"{destination}: {', '.join(str(word) for word in where if word)}"
        rows = [_row(name, model) for name, model in part["result"]["models"].items()]
        parts.append(titled(title, table(_HEADERS, rows)))
        parts += [
            f"{name}: take {choice['precision']}, {choice['why']}"
            for name, choice in part["chosen"].items()
        ]
        parts += [f"Note: {note}" for note in part["notes"]]
    return Group(*parts)


_SOFTWARE = (("JetPack", "jetpack"), ("TensorRT", "tensorrt"))


def _row(name: str, model: dict[str, Any]) -> list[object]:
    if model.get("error"):
        return [name, *[None] * 6, "failed", model["error"]["what"]]
    if "latency_ms" not in model:
        return [name, *[None] * 6, "not measured", None]
    latency, compute = model["latency_ms"], model.get("gpu_compute_ms") or {}
    accuracy = model.get("accuracy")
    return [
        name,
        latency["median"],
        latency["p90"],
        latency["p99"],
        compute.get("median"),
        _energy(model.get("energy_mj") or {}),
        None if accuracy is None else "agree" if accuracy["ok"] else "DIFFER",
        "settled" if model["settled"] else f"inconclusive: {model['why']}",
        ", ".join(model["flags"]) or None,
    ]


def _energy(energy: dict[str, Any]) -> str | None:
    """Net of idle where that is known."""
    if energy.get("net_of_idle") is not None:
        return f"{energy['net_of_idle']:.3g}"
    return f"{energy['per_inference']:.3g} with idle" if energy else None


def _end_badly_where_a_model_did(found: dict[str, Any]) -> None:
    """Exit with 3 where a sample gave other logits, with 1 where a model could not be measured."""
    models = [
        model for part in found["boards"].values() for model in part["result"]["models"].values()
    ]
    if any("wrong_logits" in model["flags"] for model in models if not model.get("error")):
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
