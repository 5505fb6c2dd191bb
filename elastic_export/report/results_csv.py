"""``results.csv``: one line per descendant and target, raw figures, empty where there is none."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields

from elastic_export.config.result import BuildResult
from elastic_export.report.frames import Row, rows

__all__ = ["to_csv"]


def to_csv(result: BuildResult) -> str:
    """Write `frames.Row` line by line, under a header of its field names."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows(result))
    return buffer.getvalue()
