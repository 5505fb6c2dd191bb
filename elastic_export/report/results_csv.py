"""The CSV files: raw figures, empty where there is none.

``results.csv`` has one line per descendant and target, ``latencies.csv`` one per measurement.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from elastic_export.config.result import BuildResult
from elastic_export.report.frames import LatencyRow, Row, latency_rows, rows

__all__ = ["latencies_csv", "results_csv"]


def results_csv(result: BuildResult) -> str:
    """Write `frames.Row` line by line, under a header of its field names."""
    return _csv(Row, rows(result))


def latencies_csv(result: BuildResult) -> str:
    """Write `frames.LatencyRow` line by line, under a header of its field names."""
    return _csv(LatencyRow, latency_rows(result))


def _csv(kind: type[Row] | type[LatencyRow], lines: Sequence[Row] | Sequence[LatencyRow]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    return buffer.getvalue()
