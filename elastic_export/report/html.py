"""``report.html``: one page that needs nothing but itself, made from the result alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from elastic_export.config.result import BuildResult, Latency
from elastic_export.report import units
from elastic_export.report.details import cell, describe_targets, flat
from elastic_export.report.frames import (
    Row,
    accuracy_sources,
    estimated_targets,
    final_rows,
    measured_target,
    measured_targets,
)
from elastic_export.report.quantization import (
    describe_quantization,
    placement_races,
    returned_layers,
)
from elastic_export.report.series import Plot, accuracy_latency
from elastic_export.report.summary import figures, sentences
from elastic_export.report.svg import inline

__all__ = ["to_html"]


def to_html(result: BuildResult, plots: Sequence[tuple[Plot, str]]) -> str:
    """Render the page.

    Args:
        result: What the build found; it is embedded as JSON under the id ``result``.
        plots: The plots with their SVG files, in the order to show them.

    Returns:
        A whole document. It refers to nothing outside itself, and a policy inside forbids it to.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("elastic_export.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": units.count,
        "size": units.size,
        "ms": units.milliseconds,
        "percent": units.percent,
        "seconds": units.seconds,
        "cell": cell,
    }
    table = final_rows(result)
    return environment.get_template("report.html.j2").render(
        result=result,
        sentences=sentences(result),
        figures=figures(result),
        table=table,
        columns=_columns(table),
        measured_on=measured_target(result),
        measured=measured_targets(result),
        plots=[
            (plot, Markup(inline(svg, plot.name, f"{plot.title}. {plot.caption}")))
            for plot, svg in plots
        ],
        front=accuracy_latency(result).front,
        estimated=estimated_targets(result),
        targets=describe_targets(result),
        quantization=describe_quantization(result),
        returned=returned_layers(result),
        races=placement_races(result),
        sources=accuracy_sources(result),
        images=_images(result),
        protocol=_protocol(result),
        tables={
            "Machine": _pairs(result.machine),
            **{f"Board {name}": _pairs(board) for name, board in _boards(result).items()},
            "Versions": _pairs(result.versions),
            "Data": _pairs(result.dataset),
            "Supernet": _pairs(result.supernet),
        },
        stages=_stages(result),
        recipe=yaml.safe_dump(
            result.model_dump(mode="json")["recipe"], sort_keys=False, allow_unicode=True
        ),
        data=_embedded(result),
    )


def _embedded(result: BuildResult) -> Markup:
    """Give JSON that cannot end the script element it stands in."""
    text = json.dumps(result.model_dump(mode="json"), separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _columns(table: Sequence[Row]) -> set[str]:
    """Name the optional columns that have a figure."""
    optional = (
        "top1_2_4",
        "top1_int8",
        "bytes_fp32",
        "bytes_int8",
        "fp32_median_ms",
        "int8_median_ms",
        "chosen",
        "status",
    )
    return {name for name in optional if any(getattr(row, name) for row in table)}


def _images(result: BuildResult) -> str:
    """Say how many images of which split the accuracies stand on."""
    counts = {
        (accuracy.images, accuracy.split)
        for descendant in result.descendants
        for accuracy in descendant.accuracy.values()
    }
    return " or ".join(f"{images} {split} images" for images, split in sorted(counts))


def _latencies(result: BuildResult) -> list[Latency]:
    return [
        latency
        for descendant in result.descendants
        for bundle in descendant.bundles
        for latency in bundle.latency.values()
    ]


def _boards(result: BuildResult) -> dict[str, dict[str, Any]]:
    """What each board is, by its name."""
    return {each.on: each.machine for each in _latencies(result) if each.on is not None}


def _protocol(result: BuildResult) -> dict[str, Any]:
    """How latency was measured: on this machine, and on boards."""
    every = _latencies(result)
    here = [latency for latency in every if latency.on is None]
    away = [latency for latency in every if latency.on is not None]
    settings = {**(result.recipe.get("measure") or {})}
    settings.pop("on", None)
    return {
        "measured": len(here),
        "settled": sum(latency.settled for latency in here),
        "runners": sorted({latency.runner for latency in here}),
        "samples": sorted({latency.samples for latency in here}),
        "recipe": flat(settings),
        "boards": sorted({str(latency.on) for latency in away}),
        "board_runners": sorted({latency.runner for latency in away}),
        "board_measured": len(away),
        "board_settled": sum(latency.settled for latency in away),
        "energy": any(latency.energy_mj is not None for latency in away),
    }


def _pairs(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, cell(value, key)) for key, value in flat(record).items()]


def _stages(result: BuildResult) -> list[tuple[str, str, str, float]]:
    """Give name, duration, remark and share of the longest for each stage record."""
    longest = max((_duration(stage) for stage in result.stages), default=0.0)
    found = []
    for stage in result.stages:
        rest = {k: v for k, v in stage.items() if k not in ("stage", "name", "seconds", "cached")}
        remark = ", ".join(f"{key} {cell(value, key)}" for key, value in flat(rest).items())
        if stage.get("cached"):
            remark = f"from the store; {remark}" if remark else "from the store"
        share = _duration(stage) / longest if longest > 0 else 0.0
        found.append(
            (
                str(stage.get("stage") or stage.get("name") or ""),
                units.seconds(_duration(stage)),
                remark,
                100 * share,
            )
        )
    return found


def _duration(stage: Mapping[str, Any]) -> float:
    value = stage.get("seconds")
    return float(value) if isinstance(value, (int, float)) else 0.0
