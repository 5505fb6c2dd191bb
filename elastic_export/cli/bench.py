"""``elastic-export bench``: how fast bundles are, on this machine or on boards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, VerboseOption
from elastic_export.errors import UserError

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
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="Bundle folders.", show_default=False),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="USER@BOARD", help="Measure there over ssh. May be repeated."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    precision: Annotated[
        list[str] | None, typer.Option(help="On boards: only this one. May be repeated.")
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
        bool, typer.Option("--fresh", help="On boards: measure finished models again.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the latency of bundles, their precisions interleaved.

    On this machine ONNX Runtime measures one bundle. On boards the script of the bundle builds the
    engines, checks the sample images, pins the clocks where it may, and measures; a lost connection
    loses nothing, and the same command goes on where it was.
    """
    with command(as_json, quiet, verbose) as output:
        from elastic_export import pipeline

        if not on:
            if len(bundles) > 1:
                raise UserError(
                    "On this machine one bundle is measured at a time.",
                    "Give one bundle, or a board with --on.",
                )
            from elastic_export.cli.tables import facts

            told = pipeline.bench_bundle(bundles[0], threads=threads, progress=output.progress)
            output.result(told, facts(told), short=told["chosen"] or told["note"])
            return
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
            bundles,
            on,
            options,
            ssh_config=ssh_config,
            patience=patience,
            progress=output.progress,
        )
        output.result(found, _tables(found))
        _explain_failures(found, output)
        _end_badly_where_a_model_did(found)


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
