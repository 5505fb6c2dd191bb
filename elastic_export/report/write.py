"""Write everything a finished build shows: result, table, page and plots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elastic_export.artifacts.files import write_atomically
from elastic_export.config.result import BuildResult
from elastic_export.errors import CheckFailed
from elastic_export.report.frames import measured_targets
from elastic_export.report.html import to_html
from elastic_export.report.load import RESULT_FILE
from elastic_export.report.plots import draw
from elastic_export.report.results_csv import latencies_csv, results_csv
from elastic_export.report.series import Plot, accuracy_latency, accuracy_macs, latency_macs

__all__ = ["write_report"]

PLOTS = ("accuracy-macs", "accuracy-latency", "latency-macs")
"""What the names of our plots begin with; other files in their folder are not ours."""


def write_report(result: BuildResult, out: Path) -> dict[str, Path]:
    """Write the report of a build into a folder.

    Each file appears whole or not at all, ``report.json`` last. A plot without a single point is
    not drawn, and what an earlier report left of it is removed.

    Args:
        result: What the build found.
        out: The folder; made if need be. Other files in it stay.

    Returns:
        What was written: ``json``, ``csv``, ``html``, ``latencies`` and, per plot, for example
        ``accuracy-macs.png`` and ``accuracy-macs.svg``. The two plots of latency come once for each
        target that was measured.

    Raises:
        CheckFailed: A figure is not finite; nothing is written.
        UserError: The disk is full or the folder cannot be written.
    """
    text = _json(result)
    plots = [plot for plot in _plots(result) if plot.points]
    pictures = {f"{plot.name}.{kind}": data for plot in plots for kind, data in draw(plot).items()}
    for old in [*out.glob("plots/*.png"), *out.glob("plots/*.svg")]:
        if old.name not in pictures and old.name.partition(".")[0] in PLOTS:
            old.unlink()
    page = to_html(result, [(plot, pictures[f"{plot.name}.svg"].decode()) for plot in plots])

    written = {name: out / "plots" / name for name in pictures}
    for name, data in pictures.items():
        write_atomically(written[name], data)
    for key, name, content in (
        ("csv", "results.csv", results_csv(result)),
        ("latencies", "latencies.csv", latencies_csv(result)),
        ("html", "report.html", page),
        ("json", RESULT_FILE, text),
    ):
        written[key] = out / name
        write_atomically(written[key], content.encode())
    return written


def _plots(result: BuildResult) -> list[Plot]:
    found = [accuracy_macs(result), accuracy_latency(result), latency_macs(result)]
    for target in measured_targets(result)[1:]:
        found += [accuracy_latency(result, target), latency_macs(result, target)]
    return found


def _json(result: BuildResult) -> str:
    data = result.model_dump(mode="json")
    wrong = next(_not_finite(data, ""), None)
    if wrong is not None:
        raise CheckFailed(
            f'The figure "{wrong}" of the result is not a finite number.',
            "Run elastic-export build again with --fresh; if it stays, please report a bug.",
        )
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _not_finite(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, float) and value - value != 0:
        yield path.lstrip(".")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{path}.{index}")
