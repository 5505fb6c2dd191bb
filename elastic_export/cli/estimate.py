"""``elastic-export estimate``: how fast a network would be on a device that is not here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, VerboseOption
from elastic_export.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["estimate"]

_SLOWEST = 8


def estimate(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|FILE.onnx",
            help="A bundle folder, or a plain FP32 ONNX file.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str,
        typer.Option(metavar="NAME[@SOFTWARE[:MODE]]", help="The device.", show_default=False),
    ],
    precision: Annotated[
        str | None,
        typer.Option(metavar="P", help="fp32, fp16 or int8; all that the device runs if left out."),
    ] = None,
    fit: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RESULT.json",
            help="First fit the target to this result of bench --on for the bundle, and keep that "
            "for later estimates. May be repeated.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="BUNDLE",
            help="Another bundle that was measured, for --fit. May be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Estimate the latency of a network on a GPU, without one.

    An estimate is no measurement: it is given with a range, and says what its constants were fitted
    to. Measure with "bench BUNDLE --on USER@BOARD" before deciding anything that is close.
    """
    with command(as_json, quiet, verbose) as output:
        if bundle and not fit:
            raise UserError(
                "--with names another bundle that was measured, and no result is given.",
                "Give the result with --fit, or leave --with out.",
            )
        with output.task("Estimating"):
            from elastic_export import pipeline

            if fit:
                pipeline.fit_board(fit, [path, *(bundle or [])], target)
            found = pipeline.estimate_latency(path, target, precision)
        output.result(found, _tables(found), short=_short(found))


def _short(found: dict[str, Any]) -> str:
    return "; ".join(f"{name}: {_words(one)}" for name, one in found["estimates"].items())


def _words(one: dict[str, Any]) -> str:
    return f"estimate {one['ms']:.3g} ms ({one['low_ms']:.3g} to {one['high_ms']:.3g})"


def _tables(found: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    from elastic_export.cli.tables import table, titled

    headers = ("precision", "estimate ms", "range of the estimate ms", "kernels", "bound by")
    rows = [
        (
            name,
            f"{one['ms']:.3g}",
            f"{one['low_ms']:.3g} to {one['high_ms']:.3g}",
            one["kernels"],
            ", ".join(f"{what} {share:.0%}" for what, share in one["shares"].items()),
        )
        for name, one in found["estimates"].items()
    ]
    title = f"Latency estimate, not measured: {found['path']} on {found['target']}"
    parts: list[RenderableType] = [titled(title, table(headers, rows))]
    if len(found["estimates"]) == 1:
        one = next(iter(found["estimates"].values()))
        parts += [_by_kind(one), _slowest(one)]
    for name, one in found["estimates"].items():
        gain = one["dense_ms"] / one["ms"]
        if gain > 1.001:
            parts.append(
                f"{name}: 2:4 in {found['sparse_layers']} layers, estimate of its gain "
                f"{gain:.2f}x at best; the builder may pick dense kernels."
            )
    parts.append(f"Constants of the estimate: {found['basis']}.")
    parts += [f"Note: {note}" for note in found["notes"]]
    return Group(*parts)


def _slowest(one: dict[str, Any]) -> RenderableType:
    from elastic_export.cli.tables import table, titled

    rows = [
        (
            layer["name"],
            layer["kind"],
            f"{layer['ms']:.3g}",
            f"{layer['ms'] / one['ms']:.1%}",
            layer["bound"],
            f"{layer['macs'] / 1e6:.4g}",
        )
        for layer in sorted(one["layers"], key=lambda layer: -layer["ms"])[:_SLOWEST]
    ]
    headers = ("kernel", "kind", "estimate ms", "share", "bound by", "MMAC")
    title = f"The slowest {len(rows)} of {one['kernels']} kernels (--json has all)"
    return titled(title, table(headers, rows))


def _by_kind(one: dict[str, Any]) -> RenderableType:
    from elastic_export.cli.tables import table

    times: dict[str, list[float]] = {}
    for layer in one["layers"]:
        times.setdefault(layer["kind"], []).append(layer["ms"])
    rows = [
        (kind, len(each), f"{sum(each):.3g}", f"{sum(each) / one['ms']:.1%}")
        for kind, each in sorted(times.items(), key=lambda item: -sum(item[1]))
    ]
    return table(("kind of kernel", "layers", "estimate ms", "share"), rows)
