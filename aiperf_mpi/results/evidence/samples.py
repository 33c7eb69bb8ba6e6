# SPDX-License-Identifier: Apache-2.0
"""Machine-usage samples over all nodes: whole-run means (used by every report), and mean and range over
time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence

#: Name of the table, and the text of reports on a file without its rows.
TABLE = "samples"
WITHOUT = "This run has no samples of its machine's use."

#: The means of these columns describe the use of the machine.
USED = (
    "cpu_percent",
    "process_percent",
    "memory_bytes",
    "process_bytes",
    "device_percent",
    "device_memory_bytes",
    "device_mhz",
    "device_celsius",
    "device_watts",
    "power_watts",
)

#: A series has at most this many times: more are joined to intervals.
MAX_TIMES = 500


@dataclass(frozen=True, slots=True)
class Series:
    """A column over time: f8 [times] arrays of the time in s, the mean over the nodes, the lowest and the
    highest; `average` is the mean over all nodes and times."""

    name: str
    t: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    average: float

    @property
    def text(self) -> str:
        """The mean with its unit."""
        return f"{self.average:.1f} %" if self.name.endswith("percent") else f"{self.average / 1e9:.2f} GB"


def series(e: Evidence, *columns: tuple[str, ...]) -> dict[str, Series]:
    """Return the series of the columns that have numbers, by name."""
    all_series = {name: _series(e, name) for group in columns for name in group}
    return {name: values for name, values in all_series.items() if values is not None}


def total(e: Evidence, name: str) -> Series | None:
    """Return a column summed over the nodes that measure it, or None if no node does."""
    one = _series(e, name)
    if one is None:
        return None
    nodes = len(np.unique(e.column(TABLE, "node")[np.isfinite(e.column(TABLE, name).astype(float))]))
    return Series(name, one.t, nodes * one.mean, nodes * one.mean, nodes * one.mean, nodes * one.average)


def lengths(e: Evidence) -> np.ndarray:
    """Return the length of each window in s (f8 [samples]).

    A window begins at the end of its node's window before it, or at the start of its segment.
    """
    t, node, segment = (e.column(TABLE, name) for name in ("t", "node", "segment"))
    follows = np.append(False, (node[1:] == node[:-1]) & (segment[1:] == segment[:-1]))[: len(node)]
    begun = np.zeros(len(t))
    if len(starts := e.column("segments", "t_start")) > 1:
        begun = starts[np.clip(segment - 1, 0, len(starts) - 1)]
    return t - np.where(follows, np.roll(t, 1), begun)


def mean(e: Evidence, name: str) -> float:
    """Return the mean of a column over all nodes and the whole run, or NaN if no node measured it.

    Each window counts by its length: a mean over rows would count short windows too much, such as a last one
    that core stop cuts.
    """
    values, seconds = e.column(TABLE, name).astype(float), lengths(e)
    known = np.isfinite(values) & (seconds > 0)
    return float(np.average(values[known], weights=seconds[known])) if known.any() else math.nan


def means(e: Evidence) -> dict[str, float]:
    """Return the means of all columns of USED by name, empty without samples."""
    return {name: mean(e, name) for name in USED} if has_rows(e) else {}


def has_rows(e: Evidence) -> bool:
    """Return whether the file has samples (older files do not have the table)."""
    return TABLE in e.result.tables and len(e.result.tables[TABLE].get("t", ())) > 0


def _series(e: Evidence, name: str) -> Series | None:
    """Return the series of a column, or None without a number."""
    if not has_rows(e) or name not in e.result.tables[TABLE]:
        return None
    t, values = e.column(TABLE, "t"), e.column(TABLE, name).astype(float)
    known = np.isfinite(t) & np.isfinite(values) & (values >= 0)
    if not known.any():
        return None
    t, values = t[known], values[known]

    # Nodes are sampled at about the same times: each interval has one or more values of each node.
    count = min(
        MAX_TIMES,
        max(1, int(np.bincount(np.unique(e.column(TABLE, "node")[known], return_inverse=True)[1]).max())),
    )
    edges = np.linspace(t.min(), t.max(), count + 1)
    place = np.clip(np.searchsorted(edges, t, side="right") - 1, 0, count - 1)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    sums, times = np.add.reduceat(values[order], starts), np.add.reduceat(t[order], starts)
    low, high = np.minimum.reduceat(values[order], starts), np.maximum.reduceat(values[order], starts)
    return Series(name, times / sizes, sums / sizes, low, high, mean(e, name))
