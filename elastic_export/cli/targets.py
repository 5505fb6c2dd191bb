"""``elastic-export targets``: the devices that are known."""

from __future__ import annotations

from typing import Any

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, TargetArgument, VerboseOption

__all__ = ["app"]

app = typer.Typer(help="Devices: list them, show one.", no_args_is_help=True)


@app.command("list")
def list_targets(
    as_json: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = False
) -> None:
    """List the shipped targets."""
    with command(as_json, quiet, verbose) as output:
        from elastic_export import resources
        from elastic_export.cli.tables import table
        from elastic_export.config.targets import load_target

        found = [load_target(name).target for name in resources.names("targets")]
        rows = [
            (
                target.name,
                target.title,
                [entry.name for entry in target.software],
                target.power_modes,
                list(target.flavours),
                target.sparse_2_4,
                sum(not peak.verified for peak in target.peaks.values()),
            )
            for target in found
        ]
        headers = ("target", "device", "software", "modes", "precisions", "2:4", "unverified")
        output.result(
            {"targets": [target.model_dump(mode="json") for target in found]},
            table(headers, rows),
            short="\n".join(target.name for target in found),
        )


@app.command("show")
def show_target(
    target: TargetArgument,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show one target: what it can run, its peak rates, and where the figures come from."""
    with command(as_json, quiet, verbose) as output:
        from rich.console import Group

        from elastic_export.cli.tables import facts, table, titled
        from elastic_export.config.peaks import peak_rates
        from elastic_export.config.targets import load_target

        found = load_target(target)
        profile, software = found.target, found.software
        rates = {mode: peak_rates(profile, mode) for mode in profile.power_modes or (None,)}
        data: dict[str, Any] = {
            "identity": found.identity,
            "target": profile.model_dump(mode="json"),
            "peak_rates": {mode or "default": values for mode, values in rates.items()},
        }
        general = facts(
            {
                "device": profile.title,
                "compute capability": f"{profile.sm / 10:.1f}" if profile.sm else None,
                "runtime": f"{software.runtime} {software.runtime_version}",
                "ONNX opset up to": software.max_opset,
                "precisions": found.flavours,
                "2:4 is skipped": profile.sparse_2_4,
                "engine is built": {"none": "not at all", "anywhere": "on any machine"}.get(
                    profile.build_on, "on the device"
                ),
                "power modes": profile.power_modes,
            }
        )
        figures = [
            (name, peak.value, "" if peak.verified else "unverified", peak.source)
            for name, peak in profile.peaks.items()
        ]
        parts: list[Any] = [titled(found.identity, general)]
        if any(rates.values()):
            names = list(next(values for values in rates.values() if values))
            lines = [[mode or "", *values.values()] for mode, values in rates.items()]
            title = "Peak rates of the GPU, 10^12 operations per second (a ceiling, no forecast)"
            parts += ["", titled(title, table(["mode", *names], lines))]
        if figures:
            parts.append(table(("figure", "value", "", "source"), figures))
        parts += [f"- {note}" for note in profile.notes]
        output.result(data, Group(*parts), short=found.identity)
