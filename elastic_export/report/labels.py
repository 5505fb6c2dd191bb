"""Names beside markers, placed so that they cover neither each other nor a marker."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

__all__ = ["place_labels"]

# Offset in points and alignment, the preferred places first.
PLACES = (
    (7, 0, "left", "center"),
    (0, 7, "center", "bottom"),
    (0, -7, "center", "top"),
    (-7, 0, "right", "center"),
    (6, 6, "left", "bottom"),
    (6, -6, "left", "top"),
    (-6, 6, "right", "bottom"),
    (-6, -6, "right", "top"),
    (0, 17, "center", "bottom"),
    (0, -17, "center", "top"),
    (14, 14, "left", "bottom"),
    (14, -14, "left", "top"),
)
MARKER_POINTS = 9.0
LINE_POINTS = 4.0


def place_labels(
    axes: Axes,
    labels: Sequence[tuple[str, float, float]],
    markers: Sequence[tuple[float, float]],
    *,
    lines: Sequence[Sequence[tuple[float, float]]] = (),
    obstacles: Sequence[Bbox] = (),
    color: str,
    fontsize: float,
) -> None:
    """Annotate points, each where it overlaps least, in the given order.

    Greedy and without randomness, so that the same points give the same picture. The axes' limits
    must be final.

    Args:
        axes: Where to write; its figure must have an Agg canvas.
        labels: Text and position in data coordinates.
        markers: Positions of all markers, in data coordinates.
        lines: Polylines in data coordinates that labels should not cross.
        obstacles: Boxes in pixels to keep clear of, such as the legend.
        color: Of the text.
        fontsize: In points.
    """
    figure = axes.figure
    renderer = cast(FigureCanvasAgg, figure.canvas).get_renderer()
    per_point = figure.dpi / 72
    taken = [*obstacles]
    if markers:
        taken += _boxes(axes.transData.transform(list(markers)), MARKER_POINTS * per_point)
    for line in lines:
        vertices = axes.transData.transform(list(line))
        for begin, end in pairwise(vertices):
            steps = max(int(np.hypot(*(end - begin)) / (LINE_POINTS * per_point)), 1)
            along = np.linspace(begin, end, steps + 1)
            taken += _boxes(along, LINE_POINTS * per_point)
    for text, x, y in labels:
        taken.append(_place(axes, renderer, text, (x, y), taken, color, fontsize))


def _place(
    axes: Axes,
    renderer: RendererBase,
    text: str,
    at: tuple[float, float],
    taken: Sequence[Bbox],
    color: str,
    fontsize: float,
) -> Bbox:
    """Try every place; keep the first that is free, otherwise the one that covers least."""
    inside = axes.get_window_extent(renderer)
    annotation = axes.annotate(
        text,
        at,
        xytext=(0, 0),
        textcoords="offset points",
        color=color,
        fontsize=fontsize,
        parse_math=False,
        zorder=5,
    )
    best: tuple[float, int] | None = None
    for index, (dx, dy, horizontal, vertical) in enumerate(PLACES):
        annotation.xyann = (dx, dy)
        annotation.set(ha=horizontal, va=vertical)
        box = annotation.get_window_extent(renderer)
        outside = box.width * box.height - _overlap(box, inside)
        cost = sum(_overlap(box, other) for other in taken) + 3 * outside
        if best is None or cost < best[0] - 1e-6:
            best = (cost, index)
        if cost <= 1e-6:
            break
    assert best is not None
    dx, dy, horizontal, vertical = PLACES[best[1]]
    annotation.xyann = (dx, dy)
    annotation.set(ha=horizontal, va=vertical)
    return annotation.get_window_extent(renderer)


def _boxes(centres: np.ndarray, width: float) -> list[Bbox]:
    half = width / 2
    return [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in centres]


def _overlap(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0
