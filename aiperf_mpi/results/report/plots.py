# SPDX-License-Identifier: Apache-2.0
"""How the pictures of a report look: inline SVG whose text is text, in one look that holds on light and on
dark paper.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; the page has a lighter
set of them for dark paper. Lines and letters of the axes take the colour of the text around them. What has
very many points is drawn as an image inside of the picture, so that a page stays small.
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

#: Colours by the name of the page's variable.
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

#: Stand for the colours of the page's text and paper while matplotlib draws.
INK, PAPER = "#010203", "#fdfcfb"

#: Most points of a line, and of a cloud that is drawn point by point.
MAX_POINTS, MAX_DOTS = 1000, 1000

#: Lines of fewer points have a mark at each of them.
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
    """A figure with `rows` axes that share their x; `height` in inches of all of them."""
    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(6.4, height or 2.6 * rows), layout="constrained")
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    return figure, list(axes)


def line(axis: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str = "") -> None:
    """A line through at most MAX_POINTS of the points, with marks where they are few."""
    keep = thinned(len(x))
    mark = "o" if len(x) <= MARKED else ""
    axis.plot(x[keep], y[keep], color=colour, label=label or None, marker=mark, markersize=4)


def dots(axis: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """A mark at every point; very many of them are one image."""
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
    """The axis from zero to `top`, or to a little above what it shows, so that nothing is cut off at its
    edge."""
    highest = axis.dataLim.y1
    if top is None and 0 < highest < np.inf:
        top = 1.08 * highest
    axis.set_ylim(0, top)


def thinned(count: int, most: int = MAX_POINTS) -> np.ndarray:
    """Indices of at most `most` of `count` points, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(int))


def legend(figure: Figure, columns: int) -> None:
    """A legend above the axes."""
    with matplotlib.rc_context(_LOOK):
        figure.legend(loc="outside upper center", ncols=columns, fontsize=10)


def svg(figure: Figure, name: str, title: str, about: str) -> str:
    """The figure as an SVG element for a page.

    Arguments:
        name: keeps its identifiers apart from those of other pictures.
        title, about: read to those who do not see it: what it is, and what it shows.
    """
    out = io.StringIO()
    with matplotlib.rc_context(_LOOK | {"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]

    # Colours of the page, and identifiers that no other picture on it has.
    text = text.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    for variable, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r'(id="|xlink:href="#|url\(#)(?=[A-Za-z_])', rf"\g<1>{name}-", text)
    text = re.sub(r"\n\s*", "\n", text)
    head, _, rest = text.partition(">")
    spoken = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-about">{escape(about)}</desc>'
    return f'{head} role="img" aria-labelledby="{name}-title {name}-about">{spoken}{rest}'
