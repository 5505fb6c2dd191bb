"""``elastic-export targets``: the devices that are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic_export.cli.errors import command
from elastic_export.cli.options import JsonOption, QuietOption, TargetArgument, VerboseOption
from elastic_export.errors import UserError

if TYPE_CHECKING:
    from elastic_export.config.target import Target
    from elastic_export.config.targets import ResolvedTarget

__all__ = ["app"]

app = typer.Typer(help="Devices: list them, show one, ask a board.", no_args_is_help=True)

_CEILING = (
    "Peak rates of the GPU, 10^12 operations per second: a ceiling, no forecast; a DLA by itself"
)
# What `show` sets side by side for the power modes, beside the peak rates between them.
_BEFORE = {"SM": "sms", "GHz": "boost_ghz"}
_AFTER = {"GB/s": "bandwidth_gbs", "W": "tdp_w", "DLA int8 2:4": "dla_int8_2_4_tops"}


@app.command("list")
def list_targets(
    as_json: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = False
) -> None:
    """List the targets: the shipped ones and your own."""
    with command(as_json, quiet, verbose) as output:
        from elastic_export.cli.tables import table, titled
        from elastic_export.config.dla import dla_cores
        from elastic_export.config.peaks import figure
        from elastic_export.config.target_files import all_targets

        read = [_read(name) for name in all_targets()]
        found = [target for target in read if not isinstance(target, UserError)]
        broken = [f"{each.what} {each.fix}" for each in read if isinstance(each, UserError)]
        data = [_summary(target) for target in found]
        rows = [
            (
                summary["name"],
                f"{target.target.sm / 10:.1f}" if target.target.sm else None,
                figure(target.target, "memory_gb", target.power_mode),
                summary["peak_rates"].get("int8"),
                summary["peak_rates"].get("fp16"),
                target.target.sparse_2_4,
                dla_cores(target.target) or None,
                figure(target.target, "bandwidth_gbs", target.power_mode),
                target.power_mode,
                [entry.name for entry in target.target.software],
                f"{summary['unverified']} of {len(target.target.peaks)}",
            )
            for target, summary in zip(found, data, strict=True)
        ]
        headers = ("target", "sm", "GB", "int8", "fp16", "2:4", "DLA", "GB/s", "mode", "software")
        title = "int8, fp16: dense peak of the GPU in the default mode, 10^12/s (a ceiling)"
        output.result(
            {"targets": data, "broken": broken},
            titled(title, table((*headers, "unverified"), rows)),
            short="\n".join(summary["name"] for summary in data),
        )
        for sentence in broken:
            output.note(f"Left out: {sentence}")


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
        from elastic_export.config.dla import without_dla
        from elastic_export.config.peaks import peak_rates
        from elastic_export.config.targets import load_target
        from elastic_export.engine.device_plan import trtexec_arguments

        found = load_target(target)
        software = found.software
        # The tables tell of the whole device, whichever part of it was asked for.
        profile = load_target(without_dla(target)).target
        rates = {mode: peak_rates(profile, mode) for mode in found.power_modes or (None,)}
        data: dict[str, Any] = {
            "identity": found.identity,
            "target": profile.model_dump(mode="json"),
            "build_on": found.build_on,
            "precisions": found.flavours,
            "dla_core": found.dla,
            "peak_rates": {mode or "default": values for mode, values in rates.items()},
            "unverified": _summary(found)["unverified"],
            "trtexec": trtexec_arguments(found),
        }
        general = facts(
            {
                "device": profile.title,
                "also called": profile.aliases,
                "runs on": _accelerator(found, profile),
                "compute capability": f"{profile.sm / 10:.1f}" if profile.sm else None,
                "runtime": f"{software.runtime} {software.runtime_version}",
                "ONNX opset up to": software.max_opset,
                "precisions": found.flavours,
                "2:4 is skipped": found.target.sparse_2_4,
                "engine is built": {"none": "not at all", "anywhere": "on any machine"}.get(
                    found.build_on, "on the device"
                ),
                "power modes": found.power_modes,
            }
        )
        releases = [
            (
                entry.name,
                f"{entry.runtime} {entry.runtime_version}",
                entry.max_opset,
                list((entry.flavours or profile.flavours).values()),
                entry.power_modes or ("all" if profile.power_modes else None),
                "" if entry.verified else "unverified",
                entry.source,
            )
            for entry in profile.software
        ]
        figures = [
            (name, peak.value, "" if peak.verified else "unverified", peak.source)
            for name, peak in profile.peaks.items()
        ]
        parts: list[Any] = [titled(found.identity, general)]
        if any(rates.values()):
            parts += ["", titled(_CEILING, table(*_by_mode(profile, rates)))]
        headers = ("software", "runtime", "opset", "forms", "power modes", "", "source")
        parts.append(table(headers, releases))
        if figures:
            parts.append(table(("figure", "value", "", "source"), figures))
        if data["trtexec"]:
            rows = [(p, " ".join(told["build"])) for p, told in data["trtexec"].items()]
            rows.append(("timing", " ".join(next(iter(data["trtexec"].values()))["time"])))
            parts.append(table(("for", "trtexec is told, beside file names"), rows))
        parts += [f"- {note}" for note in profile.notes]
        output.result(data, Group(*parts), short=found.identity)


@app.command("probe")
def probe_target(
    destination: Annotated[str, typer.Argument(metavar="USER@BOARD", show_default=False)],
    python: Annotated[str, typer.Option(help="The interpreter there.")] = "python3",
    ssh_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of ~/.ssh/config.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the proposed profile there.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Ask a board over ssh what it is, and say which target that is.

    Where no profile fits, one is proposed; what it cannot know has to be looked up.
    """
    with command(as_json, quiet, verbose) as output:
        from rich.console import Group

        from elastic_export import pipeline
        from elastic_export.cli.tables import facts, titled
        from elastic_export.measure.proposal import propose

        with output.task(f"asking {destination}"):
            board = pipeline.probe_board(destination, ssh_config=ssh_config, python=python)
        found = propose(board)
        # A profile is found by its file's name.
        named = {"name": save.stem} if save is not None else {}
        text = _as_yaml({**found.profile, **named}) if found.profile else ""
        if save is not None and text:
            _save(save, text)
        verdict = found.identity or "no target fits"
        parts: list[Any] = [titled(f"{destination}: {verdict}", facts(board))]
        parts += [f"- {note}" for note in found.notes]
        if text and save is None:
            from rich.text import Text

            parts += ["", "A profile to complete (--save FILE keeps it):", "", Text(text)]
        data = {
            "board": board,
            "identity": found.identity,
            "notes": list(found.notes),
            "profile": found.profile or None,
        }
        output.result(data, Group(*parts), short=verdict)
        if save is not None:
            output.note(f"Saved: {save}" if text else f"There is nothing to save in {save}.")


def _read(name: str) -> ResolvedTarget | UserError:
    """Read a target; a file of the user's own that is none hides no other."""
    from elastic_export.config.targets import load_target

    try:
        return load_target(name)
    except UserError as error:
        return error


def _save(path: Path, text: str) -> None:
    """Write a profile, and never over what is there."""
    from elastic_export.artifacts.disk import explained
    from elastic_export.artifacts.files import write_atomically

    if path.exists():
        raise UserError(f"{path} exists already.", "Name another file with --save, or remove it.")
    with explained(path.parent):
        write_atomically(path, text.encode())


def _as_yaml(profile: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(profile, sort_keys=False, allow_unicode=True))


def _summary(found: ResolvedTarget) -> dict[str, Any]:
    """The profile, with what follows from it in the mode and software that were chosen."""
    from elastic_export.config.peaks import peak_rates, unverified

    return found.target.model_dump(mode="json") | {
        "identity": found.identity,
        "peak_rates": peak_rates(found.target, found.power_mode),
        "unverified": unverified(found.target),
    }


def _accelerator(found: ResolvedTarget, profile: Target) -> str | None:
    """What runs a network there, and how the DLA is asked for where the device has one."""
    from elastic_export.config.dla import dla_cores, software_with_dla, with_dla

    if profile.kind == "host":
        return None
    if found.dla is not None:
        return f"DLA core {found.dla}; what it does not run goes to the GPU"
    software = software_with_dla(profile)
    if not software:
        return "GPU"
    names = [with_dla(profile.name, core) for core in range(dla_cores(profile))]
    return f"GPU; a DLA is asked for as {' or '.join(names)} (FP16, with {', '.join(software)})"


def _by_mode(
    profile: Target, rates: dict[str | None, dict[str, float]]
) -> tuple[list[str], list[list[Any]]]:
    """Headers and one row for each power mode; what no mode has a value of is left out."""
    from elastic_export.config.peaks import figure

    columns: dict[str, list[Any]] = {"mode": list(rates)}
    columns |= {title: [figure(profile, key, m) for m in rates] for title, key in _BEFORE.items()}
    names = next(values for values in rates.values() if values)
    columns |= {name: [values.get(name) for values in rates.values()] for name in names}
    columns |= {title: [figure(profile, key, m) for m in rates] for title, key in _AFTER.items()}
    kept = {title: cells for title, cells in columns.items() if any(c is not None for c in cells)}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]
