"""What the page tells of INT8 for each descendant: ranges, training, guard and placement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_export.config.result import BuildResult
from elastic_export.report.details import Grid
from elastic_export.report.units import MISSING, milliseconds, percent

__all__ = ["describe_quantization", "placement_races", "returned_layers"]


def describe_quantization(result: BuildResult) -> Grid:
    """Give one row for each descendant that was quantized; columns nobody has are left out."""
    rows = []
    for descendant in result.descendants:
        told = descendant.quantization
        if told:
            rows.append(
                (descendant.name, _ranges(told), _training(told), _guard(told), _placement(told))
            )
    header = ("Descendant", "Ranges", "Trained with roundings", "Guard", "Placement by speed")
    used = [i for i in range(len(header)) if any(row[i] != MISSING for row in rows)]
    return Grid(tuple(header[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows))


def returned_layers(result: BuildResult) -> Grid:
    """List every layer that the guard returned to floating point, in the order of return."""
    header = ("Descendant", "Layer", "Points won", "ms its INT8 saved", "ms from")
    rows = [
        (
            descendant.name,
            str(entry["module"]),
            f"{entry['gain']:+.2f}",
            MISSING if entry.get("saved_ms") is None else milliseconds(entry["saved_ms"]),
            str(entry.get("source", "none")),
        )
        for descendant in result.descendants
        for guard in _guards(descendant.quantization)
        for entry in guard.get("returned", ())
    ]
    return Grid(header, tuple(rows)) if rows else Grid()


def placement_races(result: BuildResult) -> Grid:
    """List the races of measured placements: each group in floating point over in INT8."""
    header = ("Descendant", "Group", "Layers", "Time in float over INT8", "Kept in float")
    rows = [
        (
            descendant.name,
            str(race["group"]),
            str(len(race["layers"])),
            _ratio(race["verdict"]),
            "yes" if race["float"] else "no",
        )
        for descendant in result.descendants
        for race in descendant.quantization.get("placement", {}).get("decisions", ())
    ]
    return Grid(header, tuple(rows)) if rows else Grid()


def _guards(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The guard before the placement and, where layers went back, the one after it."""
    found = [told.get("guard"), told.get("placement", {}).get("guard")]
    return [guard for guard in found if guard]


def _ranges(told: Mapping[str, Any]) -> str:
    text = f"{told['calibrator']} of {told['images']} images"
    smoothed = told.get("smoothed")
    if smoothed:
        text += f"; {len(smoothed['layers'])} layers smoothed (alpha {smoothed['alpha']:g})"
    return text


def _training(told: Mapping[str, Any]) -> str:
    found = told.get("qat")
    if not found:
        return MISSING
    before, after = percent(found["before"]), percent(found["after"])
    return f"{before} % to {after} % in {found['steps']} steps"


def _guard(told: Mapping[str, Any]) -> str:
    return "\n".join(_one_guard(guard) for guard in _guards(told)) or MISSING


def _one_guard(guard: Mapping[str, Any]) -> str:
    returned = len(guard["returned"])
    against = f"{percent(guard['baseline'])} % in float ({guard['flavour']}, {guard['split']})"
    if not returned:
        return f"holds: {percent(guard['after'])} % against {against}"
    layers = "1 layer" if returned == 1 else f"{returned} layers"
    return (
        f"{layers} of {guard['layers']} back in float: {percent(guard['before'])} % to "
        f"{percent(guard['after'])} % against {against}, {guard['evaluations']} evaluations"
    )


def _placement(told: Mapping[str, Any]) -> str:
    found = told.get("placement")
    return f"{found['summary']} ({found['target']})" if found else MISSING


def _ratio(verdict: Mapping[str, Any]) -> str:
    return f"{verdict['ratio']:.3f} ({verdict['low']:.3f}-{verdict['high']:.3f})"
