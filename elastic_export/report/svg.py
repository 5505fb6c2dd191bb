"""Fit matplotlib's SVG into a page: no prologue, own identifiers, colours that follow the theme."""

from __future__ import annotations

import re
from html import escape

from elastic_export.report.plots import COLORS, GRID, INK, MUTED, PAPER

__all__ = ["inline"]

THEME = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    color: f"series-{name.replace(':', '')}" for name, color in COLORS.items()
}


def inline(svg: str, name: str, label: str) -> str:
    """Turn a drawn SVG file into an element of an HTML page.

    Args:
        svg: As `plots.draw` gives it.
        name: Put before each identifier, because several plots share one page.
        label: What the picture shows, for those who do not see it.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # A style element would hold for the whole page; the page has this rule of its own.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    # Inside tags only: text is what users named their networks, and stays as it is.
    body = re.sub(r"<[^>]*>", lambda tag: _fitted(tag.group(), name), body)
    head, _, rest = body.partition(">")
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(label, quote=True)}">{rest}'


def _fitted(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
    tag = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", tag)
    tag = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', tag)
    for color, role in THEME.items():
        tag = tag.replace(color, f"var(--{role})")
    return tag
