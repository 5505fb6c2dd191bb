"""The plots, drawn with matplotlib's Agg and SVG writers; equal results give equal bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from elastic_export.report.labels import place_labels
from elastic_export.report.series import Plot, Point
from elastic_export.report.units import count

__all__ = ["COLORS", "GRID", "INK", "MUTED", "PAPER", "draw"]

INK, MUTED, GRID, PAPER = "#24292f", "#6e7781", "#e3e7eb", "#ffffff"
# Okabe and Ito's palette, told apart with every common colour blindness; the shape says it again.
COLORS = {"fp32": "#0072b2", "2:4": "#009e73", "int8": "#d55e00", "fp16": "#cc79a7"}
MARKERS = {"fp32": "o", "2:4": "^", "int8": "s", "fp16": "D"}
NAMES = {"fp32": "FP32", "2:4": "FP32 2:4", "int8": "INT8", "fp16": "FP16"}
OTHER_COLOR, OTHER_MARKER = "#56b4e9", "v"

WIDTH_INCHES, HEIGHT_INCHES, DPI = 7.4, 4.6, 160
LABEL_ALL_UP_TO = 12
CROWDED = 60
LOG_FROM_RATIO = 8.0
LOG_TICKS = (1.0, 2.0, 3.0, 5.0)

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "elastic-export",
    "path.simplify": False,
}


def draw(plot: Plot) -> dict[str, bytes]:
    """Draw one plot.

    Returns:
        The same picture as ``png`` and ``svg``, without dates and versions inside. Text in the
        SVG stays text.
    """
    with _style():
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _axes(axes, plot)
        joined = _connectors(plot)
        for line in joined:
            axes.plot(*zip(*line, strict=True), color=MUTED, alpha=0.45, linewidth=0.8, zorder=1)
        if len(plot.front) > 1:
            axes.plot(
                [p.x for p in plot.front],
                [p.y for p in plot.front],
                color=MUTED,
                linewidth=1.4,
                linestyle=(0, (5, 3)),
                zorder=2,
            )
        _markers(axes, plot.points)
        legend = axes.legend(handles=_legend_handles(plot), frameon=False, fontsize=9, loc="best")
        figure.canvas.draw()
        figure.set_layout_engine("none")
        place_labels(
            axes,
            [(p.descendant, p.x, p.y) for p in _labelled(plot)],
            [(p.x, p.y) for p in plot.points],
            lines=[[(p.x, p.y) for p in plot.front], *joined],
            obstacles=[legend.get_window_extent()],
            color=INK,
            fontsize=8.5,
        )
        return {
            "png": _save(figure, "png", {"Software": None}),
            "svg": _save(figure, "svg", {"Date": None, "Creator": None}),
        }


@contextmanager
def _style() -> Iterator[None]:
    """Start from matplotlib's own defaults, whatever the user's configuration says."""
    defaults = {
        key: value
        for key, value in matplotlib.rcParamsDefault.items()
        if not key.startswith(("backend", "interactive", "toolbar", "webagg", "tk.", "macosx"))
    }
    with matplotlib.rc_context({**defaults, **STYLE}), warnings.catch_warnings():
        # A name in a script that the font lacks: the SVG and the page still show it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _save(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _axes(axes: Axes, plot: Plot) -> None:
    axes.set_title(plot.title, loc="left", fontsize=12, fontweight="bold", pad=10)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.tick_params(which="both", length=0)
    xs, ys = [p.x for p in plot.points], [p.y for p in plot.points]
    _scale(axes, "x", xs, macs="MACs" in plot.x_label)
    _scale(axes, "y", ys, macs=False)


def _scale(axes: Axes, which: str, values: Sequence[float], *, macs: bool) -> None:
    """Take a logarithmic axis where values span a wide range, and leave room for labels."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = min(values), max(values)
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    logarithmic = low > 0 and high / low >= LOG_FROM_RATIO
    if logarithmic:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        margin = (high / low) ** 0.08
        set_limits(low / margin, high * margin)
        axis.set_major_locator(LogLocator(subs=LOG_TICKS if high / low < 30 else (1.0, 3.0)))
        axis.set_minor_formatter(NullFormatter())
    else:
        spread = (high - low) or abs(high) * 0.1 or 1.0
        set_limits(low - 0.1 * spread, high + 0.1 * spread)
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    if macs:
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    elif logarithmic:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _tick(macs: float) -> str:
    """Write ``1.00 M`` as ``1 M`` and ``2.50 M`` as ``2.5 M``."""
    number, _, unit = count(macs).partition(" ")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {unit}".strip()


def _connectors(plot: Plot) -> list[list[tuple[float, float]]]:
    """Join the precisions of one descendant, to show what each step cost and gained."""
    names = dict.fromkeys(p.descendant for p in plot.points)
    if len(names) > LABEL_ALL_UP_TO:
        return []
    lines = [[(p.x, p.y) for p in plot.points if p.descendant == name] for name in names]
    return [line for line in lines if len(line) > 1]


def _markers(axes: Axes, points: Sequence[Point]) -> None:
    scale = 1.0 if len(points) <= CROWDED else 0.7
    for point in points:
        color = COLORS.get(point.precision, OTHER_COLOR)
        axes.plot(
            [point.x],
            [point.y],
            marker=MARKERS.get(point.precision, OTHER_MARKER),
            markersize=scale * (7.5 if point.front else 6),
            markerfacecolor=PAPER if point.hollow else color,
            markeredgecolor=color if point.hollow else PAPER,
            markeredgewidth=1.6 if point.hollow else 0.8,
            linestyle="none",
            zorder=4 if point.front else 3,
        )


def _legend_handles(plot: Plot) -> list[Line2D]:
    def marker(color: str, shape: str, label: str, *, hollow: bool = False) -> Line2D:
        return Line2D(
            [],
            [],
            linestyle="none",
            marker=shape,
            markersize=7,
            markerfacecolor=PAPER if hollow else color,
            markeredgecolor=color if hollow else PAPER,
            markeredgewidth=1.6 if hollow else 0.8,
            label=label,
        )

    handles = [
        marker(
            COLORS.get(precision, OTHER_COLOR),
            MARKERS.get(precision, OTHER_MARKER),
            NAMES.get(precision, precision),
        )
        for precision in dict.fromkeys(p.precision for p in plot.points)
    ]
    if any(p.hollow for p in plot.points):
        handles.append(marker(MUTED, "o", "inconclusive", hollow=True))
    if len(plot.front) > 1:
        handles.append(
            Line2D([], [], color=MUTED, linewidth=1.4, linestyle=(0, (5, 3)), label="Pareto front")
        )
    return handles


def _labelled(plot: Plot) -> list[Point]:
    """Name each descendant once, at its point on the front if it has one; of many only those."""
    chosen: dict[str, Point] = {}
    for point in plot.points:
        known = chosen.get(point.descendant)
        if known is None or (point.front and not known.front):
            chosen[point.descendant] = point
    picked = list(chosen.values())
    if len(picked) > LABEL_ALL_UP_TO:
        picked = [point for point in picked if point.front]
        if len(picked) > LABEL_ALL_UP_TO:
            step = (len(picked) - 1) / (LABEL_ALL_UP_TO - 1)
            by_x = sorted(picked, key=lambda p: (p.x, p.y))
            picked = [by_x[round(step * index)] for index in range(LABEL_ALL_UP_TO)]
    return sorted(picked, key=lambda p: (p.x, p.y, p.descendant))
