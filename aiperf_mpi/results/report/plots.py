# SPDX-License-Identifier: Apache-2.0
"""The style of a report's pictures: inline SVG with selectable text, readable on light and dark backgrounds.

The colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish; the page has a
lighter set for dark backgrounds. Axes take the colour of the surrounding text. Very many points are drawn as
an image inside the picture, so that a page stays small.
"""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Colours by the name of their CSS variable in the page.
PALETTE = {
    "c1": "#0072b2",
    "c2": "#d55e00",
    "c3": "#009e73",
    "c4": "#cc79a7",
    "c5": "#56b4e9",
    "c6": "#e69f00",
    "c7": "#b8a800",
    "c8": "#8c8c8c",
    "c9": "#bbbbbb",
}
BLUE, ORANGE, GREEN = PALETTE["c1"], PALETTE["c2"], PALETTE["c3"]
SEQUENCE = tuple(PALETTE.values())

#: Placeholders for the colours of the page's text and background while matplotlib draws.
INK, PAPER = "#010203", "#fdfcfb"

#: Most points of a line, and most points of a cloud that are drawn one by one.
MAX_POINTS, MAX_DOTS = 1000, 1000

#: A line of at most this many points has a mark at each.
MARKED = 60

_LOOK: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "aiperf_mpi",
    "font.size": 12,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2,
    "savefig.dpi": 120,
}


def new_figure(rows: int, height: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Return a figure with `rows` axes that share their x axis; `height` in inches (0: by rows)."""
    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(6.4, height or 2.6 * rows), layout="constrained")
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    return figure, list(axes)


def line(axis: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str = "") -> None:
    """Draw a line through at most MAX_POINTS of the points, with a mark at each point if they are few."""
    keep = thinned(len(x))
    mark = "o" if len(x) <= MARKED else ""
    axis.plot(x[keep], y[keep], color=colour, label=label or None, marker=mark, markersize=4)


def dots(axis: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """Draw a mark at every point that is finite; more than MAX_DOTS marks become one image."""
    known = np.isfinite(x) & np.isfinite(y)
    if known.any():
        many = int(known.sum()) > MAX_DOTS
        axis.plot(
            x[known],
            y[known],
            "o",
            color=colour,
            label=label,
            markersize=3 if many else 5,
            rasterized=many,
            alpha=0.4 if many else 1.0,
            markeredgewidth=0,
        )


def from_zero(axis: Axes, top: float | None = None) -> None:
    """Let the y axis begin at zero and end at `top`, or a little above the highest value."""
    highest = axis.dataLim.y1
    if top is None and 0 < highest < np.inf:
        top = 1.08 * highest
    axis.set_ylim(0, top)


def thinned(count: int, most: int = MAX_POINTS) -> np.ndarray:
    """Return the indices of at most `most` of `count` points, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(int))


def legend(figure: Figure, columns: int) -> None:
    """Add a legend above the axes."""
    with matplotlib.rc_context(_LOOK):
        figure.legend(loc="outside upper center", ncols=columns, fontsize=10)


def svg(figure: Figure, name: str, title: str, about: str) -> str:
    """Return the figure as an SVG element for a page.

    Arguments:
        name: prefix of the identifiers in the picture, which makes them unique in the page.
        title, about: name and content of the picture, for screen readers.
    """
    out = io.StringIO()
    with matplotlib.rc_context(_LOOK | {"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]

    # Use the colours of the page, and identifiers that are unique in it.
    text = text.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    for variable, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r'(id="|xlink:href="#|url\(#)(?=[A-Za-z_])', rf"\g<1>{name}-", text)
    text = re.sub(r"\n\s*", "\n", text)
    head, _, rest = text.partition(">")
    spoken = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-about">{escape(about)}</desc>'
    return f'{head} role="img" aria-labelledby="{name}-title {name}-about">{spoken}{rest}'
