# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report, drawn from the rows of a judged result; each has a description in words."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from matplotlib.collections import LineCollection

from aiperf_mpi.opcount.rates import PREFIXES, power_of, rate_text
from aiperf_mpi.results.evidence import samples
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.rows import PHASES
from aiperf_mpi.results.judge.judge import Verdict
from aiperf_mpi.results.report import plots
from aiperf_mpi.results.report.plots import BLUE, GREEN, ORANGE, PAPER, SEQUENCE
from aiperf_mpi.results.report.scaling import Scaling
from aiperf_mpi.results.report.verdict import has_regulated, rate_titles

#: Most ranks with a bar each; for more ranks, the mean of each role is shown.
MAX_RANKS = 48

#: Most lines from parents to children that are drawn one by one; more lines become one image.
MAX_BRANCHES = 400


class NothingToShow(ValueError):
    """There are no rows for a picture; the message tells the reader what is missing."""


def score_over_time(e: Evidence, verdict: Verdict) -> str:
    """Draw rate and regulated rate at each sample, recomputed from the rows (Figure 4 of the paper).

    The regulated rate is left out for pictures that the program has made up.
    """
    series, titles = e.series, rate_titles(verdict)[: 2 if has_regulated(e) else 1]
    if not series:
        raise NothingToShow("The run has no core time, so there is no rate.")
    t = np.array([sample.t for sample in series])
    figure, axes = plots.new_figure(len(titles))
    for axis, column, name, colour in zip(axes, ("rate", "regulated"), titles, (BLUE, ORANGE), strict=False):
        values = np.array([getattr(sample, column) for sample in series])
        power = power_of(float(np.nanmax(values, initial=0.0)))
        plots.line(axis, t, values / 1000.0**power, colour)
        axis.set_ylabel(f"{name}\n({PREFIXES[power]}OPS)")
        axis.set_xlim(0, 1.01 * t[-1])
        plots.from_zero(axis)
    axes[-1].set_xlabel("time since core start (s)")
    last = series[-1]
    shown = len(titles) > 1 and math.isfinite(last.regulated)
    regulated = f", {titles[1]} {rate_text(last.regulated)}" if shown else ""
    about = f"At core stop, after {last.t:.1f} s: {titles[0]} {rate_text(last.rate)}{regulated}."
    return plots.svg(figure, "score", f"{titles[0].capitalize()} over time", about)


def utilisation(e: Evidence, verdict: Verdict) -> str:
    """Draw the use and memory of accelerators and hosts of all nodes over time (Figure 5 of the paper)."""
    columns = samples.series(e, ("cpu_percent", "device_percent"), ("memory_bytes", "device_memory_bytes"))
    if not columns:
        raise NothingToShow(samples.WITHOUT)
    figure, axes = plots.new_figure(2, 5.6)
    names = {
        "cpu_percent": "CPUs",
        "device_percent": "accelerators",
        "memory_bytes": "hosts",
        "device_memory_bytes": "accelerators",
    }
    for row, (axis, unit) in enumerate(zip(axes, ("use (%)", "memory (GB)"), strict=True)):
        for item in (columns[name] for name in columns if name.endswith("percent") == (row == 0)):
            colour = BLUE if names[item.name] in ("CPUs", "hosts") else ORANGE
            scale = 1.0 if row == 0 else 1e-9
            label = f"{names[item.name]}, mean {scale * item.average:.{1 if row == 0 else 2}f}"
            axis.fill_between(
                item.t, scale * item.low, scale * item.high, color=colour, alpha=0.2, linewidth=0
            )
            plots.line(axis, item.t, scale * item.mean, colour, label)
        axis.set_ylabel(unit)
        axis.set_xlim(left=0)
        plots.from_zero(axis, 105 if row == 0 else None)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=10, loc="best", labelcolor=plots.INK, frameon=False)
    axes[-1].set_xlabel("time since core start (s)")
    about = "; ".join(f"{names[item.name]}: mean {item.text}" for item in columns.values())
    return plots.svg(figure, "use", "Utilisation and memory over time, mean and range over the nodes", about)


def power(e: Evidence, verdict: Verdict) -> str:
    """Draw the power over time, summed over the nodes."""
    total = samples.total(e, "power_watts")
    if total is None:
        raise NothingToShow(
            "No power was measured: neither the accelerators nor the processors of this machine report it."
        )
    figure, (axis,) = plots.new_figure(1)
    plots.line(axis, total.t, total.mean, GREEN)
    axis.set_ylabel("power (W)")
    axis.set_xlim(left=0)
    plots.from_zero(axis)
    axis.set_xlabel("time since core start (s)")
    return plots.svg(
        figure, "power", "Power over time, all nodes that measure it", f"Mean {total.average:.1f} W."
    )


def accuracy_of_trials(e: Evidence, verdict: Verdict) -> str:
    """Draw the best accuracy of every trial at its end, and the best accuracy so far."""
    rows = e.table("trials")
    end, accuracy = rows["t_end"], 100 * (1 - rows["best_error"])
    known = np.isfinite(end) & np.isfinite(accuracy)
    if not known.any():
        raise NothingToShow("No trial has completed a validation yet.")
    figure, (axis,) = plots.new_figure(1, 3.2)
    statuses = rows["status"].astype(str)
    for status, colour in (
        ("done", BLUE),
        ("stopped", GREEN),
        ("unfinished", SEQUENCE[3]),
        ("failed", SEQUENCE[7]),
    ):
        own = statuses == status
        plots.dots(axis, end[own], accuracy[own], colour, status)
    order = np.argsort(end[known], kind="stable")
    best = np.maximum.accumulate(np.where(statuses[known] == "failed", 0.0, accuracy[known])[order])
    keep = plots.thinned(len(order))
    axis.step(
        end[known][order][keep], best[keep], where="post", color=ORANGE, linewidth=1.5, label="best so far"
    )
    axis.set_ylim(0, 103)
    axis.set_xlim(0, 1.01 * max(verdict.core_seconds, float(end[known].max())) or None)
    axis.set_ylabel("best accuracy (%)")
    axis.set_xlabel("end of the trial (s)")
    plots.legend(figure, 5)
    count = int(known.sum())
    about = f"{count} of {len(end)} trials have an accuracy; the best is {accuracy[known].max():.2f} %."
    return plots.svg(figure, "trials", "Accuracy of every trial at its end", about)


def search_tree(e: Evidence, verdict: Verdict) -> str:
    """Draw every trial by its generation and accuracy, with a line from its parent."""
    rows = e.table("trials")
    accuracy = 100 * (1 - rows["best_error"])
    parent = np.array([e.index.get(int(p), -1) for p in rows["parent_id"]])
    depth = np.zeros(len(parent), int)
    for row, above in enumerate(parent.tolist()):
        depth[row] = depth[above] + 1 if 0 <= above < row else 0
    if not np.isfinite(accuracy).any():
        raise NothingToShow("No trial has completed a validation yet, so the tree has no accuracies.")

    # Trials of one generation are spread sideways, so that they do not hide each other.
    figure, (axis,) = plots.new_figure(1, 3.8)
    x = depth + 0.5 * (np.argsort(np.argsort(rows["trial_id"])) % 13 - 6) / 13
    drawn = (parent >= 0) & np.isfinite(accuracy) & np.isfinite(accuracy[parent])
    lines = [
        [(x[p], accuracy[p]), (x[row], accuracy[row])] for row, p in enumerate(parent.tolist()) if drawn[row]
    ]
    axis.add_collection(
        LineCollection(
            lines,
            colors=SEQUENCE[7],
            linewidths=0.8,
            alpha=0.6,
            zorder=1,
            rasterized=len(lines) > MAX_BRANCHES,
        )
    )
    plots.dots(axis, x, accuracy, BLUE, "trial")
    lineage = e.lineage(verdict.best_trial)
    way = [e.index[trial] for trial in lineage]
    axis.plot(
        x[way], accuracy[way], "o-", color=ORANGE, label="the best trial and its ancestors", markersize=6
    )
    axis.set_xlabel("generation (number of ancestors)")
    axis.set_xticks(np.unique(np.linspace(0, depth.max(), min(depth.max() + 1, 12)).round()))
    axis.set_ylabel("best accuracy (%)")
    plots.legend(figure, 2)
    about = (
        f"{len(parent)} trials in {depth.max() + 1} generations; the lineage of the best trial is {lineage}."
    )
    return plots.svg(figure, "tree", "The search: generation and accuracy of every trial", about)


def time_by_kind(e: Evidence, verdict: Verdict) -> str:
    """Draw the time of each rank by kind; for many ranks, the mean of each role."""
    rows = e.table("ranks")
    count, roles = len(rows["rank"]), rows["role"].astype(str)
    if not count:
        raise NothingToShow("No rank has reported its times.")
    seconds = np.nan_to_num(np.array([rows[f"seconds_{phase}"] for phase in PHASES]))
    names = [f"{rank} {role}" for rank, role in zip(rows["rank"].tolist(), roles, strict=True)]
    if count > MAX_RANKS:
        own = [roles == role for role in dict.fromkeys(roles.tolist())]
        names = [f"{roles[mask][0]}, mean of {int(mask.sum())}" for mask in own]
        seconds = np.array([seconds[:, mask].mean(axis=1) for mask in own]).T
    figure, (axis,) = plots.new_figure(1, max(2.4, 1.5 + 0.24 * len(names)))
    left = np.zeros(len(names))
    for values, phase, colour in zip(seconds, PHASES, SEQUENCE, strict=True):
        axis.barh(
            np.arange(len(names)),
            values,
            left=left,
            color=colour,
            label=phase,
            edgecolor=PAPER,
            linewidth=0.5,
        )
        left += values
    axis.set_yticks(np.arange(len(names)), names, fontsize=10 if len(names) < 24 else 7)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("time (s)")
    axis.invert_yaxis()
    plots.legend(figure, 5)
    whole = seconds.sum() or 1.0
    shares = ", ".join(
        f"{phase} {values.sum() / whole:.1%}" for values, phase in zip(seconds, PHASES, strict=True)
    )
    return plots.svg(figure, "phases", "Time by kind of each rank", f"Of all time shown: {shares}.")


def weak_scaling(scaled: Scaling) -> str:
    """Draw rates over the number of devices with the fit and perfect scaling (Figure 6 of the paper)."""
    sizes = scaled.sizes
    devices = np.array([size.devices for size in sizes], float)
    rates = [size.rate.interval for size in sizes]
    values = np.array([rate.value for rate in rates])
    figure, (axis,) = plots.new_figure(1, 3.4)
    known = [i for i, rate in enumerate(rates) if rate.known]
    axis.errorbar(
        devices[known],
        values[known],
        color=BLUE,
        fmt="none",
        capsize=4,
        yerr=[[values[i] - rates[i].low for i in known], [rates[i].high - values[i] for i in known]],
    )
    axis.plot(devices, values, "o", color=BLUE, label="measured, with 95 %")
    smooth = np.geomspace(devices[0], devices[-1], 50)
    axis.plot(
        smooth,
        [scaled.rate_at(n) for n in smooth],
        color=ORANGE,
        label=f"fit: rate ~ devices^{scaled.exponent.value:.3f}",
    )
    axis.plot(
        smooth,
        smooth * values[0] / devices[0],
        color=SEQUENCE[7],
        linestyle="--",
        linewidth=1.2,
        label="perfect",
    )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(devices, [f"{n:g}" for n in devices])
    axis.minorticks_off()
    axis.set_xlabel("devices")
    axis.set_ylabel("rate (op/s)")
    plots.legend(figure, 3)
    about = "; ".join(
        f"{size.devices} devices: {rate_text(size.rate.rate)}, efficiency {size.efficiency.value:.3f}"
        for size in sizes
    )
    return plots.svg(figure, "scaling", "Weak scaling: rate over devices", about)


#: Pictures of one result by title, in order.
PICTURES: dict[str, Callable[[Evidence, Verdict], str]] = {
    "Rate over time": score_over_time,
    "Utilisation and memory": utilisation,
    "Accuracy of every trial": accuracy_of_trials,
    "Search tree": search_tree,
    "Time by kind": time_by_kind,
    "Power": power,
}
