"""The final table for a terminal: everything in 120 columns, stacked into 80."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from elastic_export.config.result import BuildResult
from elastic_export.report.frames import (
    LatencyRow,
    Row,
    accuracy_sources,
    final_rows,
    latency_rows,
    measured_target,
    measured_targets,
    where_measured,
)
from elastic_export.report.summary import sentences
from elastic_export.report.units import MISSING, count, milliseconds, percent, size

__all__ = ["final_table", "render"]

WIDE = 118


@dataclass(frozen=True)
class _Column:
    """A header and one cell per row; cells of several lines stack figures."""

    header: str
    cells: list[Text]
    left: bool = False


def render(result: BuildResult, width: int) -> RenderableType:
    """Give the final table with the result in words under it, for a console of that width."""
    words = Table.grid(padding=(0, 1, 0, 0))
    for sentence in sentences(result):
        words.add_row("\u2022", Text(sentence))
    parts: list[RenderableType] = [final_table(result, width)]
    for target in measured_targets(result):
        board = where_measured(result, target)
        if board:
            lines = latency_rows(result, target)
            runners = ", ".join(dict.fromkeys(line.runner for line in lines))
            title = f"{target}, on {board}: {runners}, batch {lines[0].batch_size}"
            parts.append(_board_table(lines, title, width))
    note = _note(result)
    if note:
        parts.append(Text(note, style="dim"))
    return Group(*parts, Text(""), words)


def final_table(result: BuildResult, width: int) -> Table:
    """Lay out one row per descendant; columns that nobody has a figure for are left out.

    Args:
        result: What the build found.
        width: Columns of the console. From 118 on every figure has its own column, below that
            related figures stand on top of each other.
    """
    table_rows = final_rows(result)
    columns = _wide(table_rows) if width >= WIDE else _stacked(table_rows)
    return _laid_out(columns, len(table_rows), _title(result))


def _board_table(lines: Sequence[LatencyRow], title: str, width: int) -> Table:
    """One line per measurement on a board, with what only a board tells."""
    wide = width >= WIDE
    columns = [
        _Column("descendant", [Text(line.descendant, style="bold") for line in lines], left=True),
        _Column("\nfile", [Text(line.precision) for line in lines]),
        _numbers("\ntop-1 %", [percent(line.top1) for line in lines]),
        *([_numbers("MACs\nhardw.", [count(x.hardware_macs) for x in lines])] if wide else []),
        _numbers("ms\nmedian", [milliseconds(line.median_ms) for line in lines]),
        _numbers("\np99", [milliseconds(line.p99_ms) for line in lines]),
        *([_numbers("\nGPU", [milliseconds(x.compute_ms) for x in lines])] if wide else []),
        _numbers("\nmJ", [_energy(line) for line in lines]),
        _numbers("2:4\npicked", [_picked(line) for line in lines]),
        _Column("\nchosen", [Text("yes" if x.chosen else MISSING) for x in lines], left=True),
        _Column("\nsettled", [_settled(line) for line in lines], left=True),
        _Column("\nmarks", [Text(line.marks or MISSING) for line in lines], left=True),
    ]
    return _laid_out([column for column in columns if _has_figures(column)], len(lines), title)


def _energy(line: LatencyRow) -> str:
    if line.energy_mj is None:
        return MISSING
    return f"{line.energy_mj:.3g}" + ("*" if line.energy_is == "with idle" else "")


def _picked(line: LatencyRow) -> str:
    if line.sparse_picked is None:
        return MISSING
    return f"{line.sparse_picked} of {line.sparse_eligible}"


def _settled(line: LatencyRow) -> Text:
    return Text(line.status, style="green" if line.status == "settled" else "yellow")


def _laid_out(columns: Sequence[_Column], lines: int, title: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        header_style="bold",
        show_lines=False,
        title=Text(title, style="bold"),
        title_justify="left",
    )
    for column in columns:
        table.add_column(
            Text(column.header),
            justify="left" if column.left else "right",
            vertical="top",
            overflow="ellipsis",
            no_wrap=not column.left,
            min_width=8 if column.left else None,
        )
    for index in range(lines):
        table.add_row(*(column.cells[index] for column in columns))
    return table


def _title(result: BuildResult) -> str:
    target = measured_target(result)
    return f"{result.name}, measured on {target}" if target else result.name


def _note(result: BuildResult) -> str:
    lines = latency_rows(result)
    parts = []
    here = next((line for line in lines if not line.on), None)
    if here:
        plural = "thread" if here.threads == 1 else "threads"
        parts.append(
            f"Latency on {here.target}: {here.runner}, batch {here.batch_size}, {here.threads} "
            f"{plural}, median and p99 of single calls."
        )
    if any(line.energy_mj is not None for line in lines):
        with_idle = any(line.energy_is == "with idle" for line in lines)
        parts.append(f"mJ: one batch, net of idle{' (* with idle)' if with_idle else ''}.")
    emulated = accuracy_sources(result)["emulated"]
    if emulated:
        parts.append(f"Accuracy emulated in ONNX Runtime for {', '.join(emulated)}.")
    return " ".join(parts)


def _wide(table: Sequence[Row]) -> list[_Column]:
    columns = [
        _Column("descendant", [Text(row.descendant, style="bold") for row in table], left=True),
        _numbers("top-1 %\nfp32", [percent(row.top1_fp32) for row in table]),
        _numbers("\n2:4", [percent(row.top1_2_4) for row in table]),
        _numbers("\nint8", [percent(row.top1_int8) for row in table]),
        _numbers("MACs\nalgor.", [count(row.algorithmic_macs) for row in table]),
        _numbers("MACs\nhardw.", [count(row.hardware_macs) for row in table]),
        _numbers("\nparams", [count(row.params) for row in table]),
        _numbers("file\nfp32", [size(row.bytes_fp32) for row in table]),
        _numbers("file\nint8", [size(row.bytes_int8) for row in table]),
        _numbers("fp32 ms\nmedian", [milliseconds(row.fp32_median_ms) for row in table]),
        _numbers("\np99", [milliseconds(row.fp32_p99_ms) for row in table]),
        _numbers("int8 ms\nmedian", [milliseconds(row.int8_median_ms) for row in table]),
        _numbers("\np99", [milliseconds(row.int8_p99_ms) for row in table]),
        _Column("\nchosen", [_chosen(row) for row in table], left=True),
        _Column("\nsettled", [_status(row, row.status) for row in table], left=True),
    ]
    return [column for column in columns if _has_figures(column)]


def _stacked(table: Sequence[Row]) -> list[_Column]:
    short = {"settled": "settled", "inconclusive": "inconcl.", "": ""}
    columns = [
        _Column("descendant", [Text(row.descendant, style="bold") for row in table], left=True),
        _numbers("top-1\nfp32", [percent(row.top1_fp32) for row in table]),
        _numbers("\n2:4", [percent(row.top1_2_4) for row in table]),
        _numbers("\nint8", [percent(row.top1_int8) for row in table]),
        _pairs(
            "MACs\nalg/hw", [(count(r.algorithmic_macs), count(r.hardware_macs)) for r in table]
        ),
        _numbers("\nparams", [count(row.params) for row in table]),
        _pairs("file\nfp/int8", [(size(r.bytes_fp32), size(r.bytes_int8)) for r in table]),
        _pairs(
            "fp32 ms\nmed/p99",
            [(milliseconds(r.fp32_median_ms), milliseconds(r.fp32_p99_ms)) for r in table],
        ),
        _pairs(
            "int8 ms\nmed/p99",
            [(milliseconds(r.int8_median_ms), milliseconds(r.int8_p99_ms)) for r in table],
        ),
        _Column(
            "chosen\nsettled",
            [
                Text("\n").join([_chosen(row), _status(row, short[row.status])])
                if row.chosen or row.status
                else Text(MISSING)
                for row in table
            ],
            left=True,
        ),
    ]
    return [column for column in columns if _has_figures(column)]


def _pairs(header: str, pairs: list[tuple[str, str]]) -> _Column:
    """Stack two figures; a pair without any is one dash."""
    return _numbers(
        header,
        [first if first == second == MISSING else f"{first}\n{second}" for first, second in pairs],
    )


def _numbers(header: str, cells: list[str]) -> _Column:
    return _Column(header, [Text(cell) for cell in cells])


def _has_figures(column: _Column) -> bool:
    return any(cell.plain != MISSING for cell in column.cells)


def _chosen(row: Row) -> Text:
    return Text(row.chosen, style="bold cyan") if row.chosen else Text(MISSING)


def _status(row: Row, word: str) -> Text:
    if not row.status:
        return Text(MISSING)
    return Text(word, style="yellow" if row.status == "inconclusive" else "green")
