# SPDX-License-Identifier: Apache-2.0
"""The pictures of the report: inline SVG whose text is text, in one look that holds on light and on dark paper.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart. Lines and letters of the axes take
the colour of the text around them.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aiperf_mpi.results import report
from aiperf_mpi.results.evidence import Evidence
from aiperf_mpi.results.judge import Verdict
from aiperf_mpi.results.schema import PHASES

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SEQUENCE = (BLUE, "#E69F00", GREEN, "#CC79A7", "#56B4E9", ORANGE, "#F0E442", "#8c8c8c", "#bbbbbb")

#: Stands for the colour of the page's text while matplotlib draws.
_INK = "#010203"

#: Most points of a line, and ranks of a picture: more are thinned, evenly.
MAX_POINTS, MAX_RANKS = 2000, 64

_LOOK: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "aiperf_mpi", "font.size": 12, "text.parse_math": False,
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#808080",
    "grid.alpha": 0.25, "legend.frameon": False, "lines.linewidth": 2,
}  # fmt: skip


def score_over_time(e: Evidence, verdict: Verdict) -> str:
    """The rate and the regulated rate at each sample (Figure 4 of the paper)."""
    rows = {name: np.array([getattr(sample, name) for sample in e.series]) for name in ("t", "rate", "regulated")}
    keep = _thinned(len(rows["t"]))
    figure, axes = _figure(2)
    names = report.rate_titles(verdict)
    for axis, column, name, colour in zip(axes, ("rate", "regulated"), names, (BLUE, ORANGE), strict=True):
        axis.plot(rows["t"][keep], rows[column][keep], color=colour, marker="o", markersize=3)
        axis.set_ylabel(f"{name} (op/s)")
        if np.isfinite(rows[column]).any():
            axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("time since core start (s)")
    return _svg(figure, "score")


def error_of_trials(e: Evidence, verdict: Verdict) -> str:
    """The best accuracy of every trial at its end."""
    rows = e.table("trials")
    keep = _thinned(len(rows["trial_id"]))
    figure, (axis,) = _figure(1)
    axis.plot(rows["t_end"][keep], 100 * (1 - rows["best_error"][keep]), "o", color=GREEN, markersize=5)
    axis.set_ylim(0, 105)
    axis.set_xlim(0, verdict.core_seconds or None)
    axis.set_ylabel("best accuracy (%)")
    axis.set_xlabel("end of the trial (s)")
    return _svg(figure, "trials")


def time_by_kind(e: Evidence, verdict: Verdict) -> str:
    """Where each rank's time went; of many ranks a sample."""
    rows = e.table("ranks")
    keep = _thinned(len(rows["rank"]), MAX_RANKS)
    figure, (axis,) = _figure(1, max(3.0, 1.6 + 0.16 * len(keep)))
    left = np.zeros(len(keep))
    for phase, colour in zip(PHASES, SEQUENCE, strict=True):
        seconds = np.nan_to_num(rows[f"seconds_{phase}"][keep])
        axis.barh(np.arange(len(keep)), seconds, left=left, color=colour, label=phase)
        left += seconds
    size = 12 if len(keep) < 16 else 7
    axis.set_yticks(np.arange(len(keep)), [str(rank) for rank in rows["rank"][keep]], fontsize=size)
    axis.set_ylabel("rank")
    axis.set_xlabel("time (s)")
    axis.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3, fontsize=10, frameon=False, labelcolor=_INK)
    return _svg(figure, "phases")


def _figure(rows: int, height: float = 0.0) -> tuple[Figure, list[Axes]]:
    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(6.4, height or 2.6 * rows), layout="constrained")
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    return figure, list(axes)


def _thinned(count: int, most: int = MAX_POINTS) -> np.ndarray:
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(int))


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element without the head of a file; `name` keeps its identifiers apart from others'."""
    out = io.StringIO()
    with matplotlib.rc_context(_LOOK | {"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    for what in ("figure_", "axes_", "patch_", "text_", "line2d_", "matplotlib.axis_", "xtick_", "ytick_", "legend_"):
        text = text.replace(f'id="{what}', f'id="{name}_{what}')
    return text
