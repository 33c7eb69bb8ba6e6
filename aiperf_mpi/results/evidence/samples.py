# SPDX-License-Identifier: Apache-2.0
"""What the nodes were sampled for while the run went on, over all nodes: means of the whole run, by which all
reports speak, and the mean and the range at each time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence

#: Name of the table, and what is said where it has no rows.
TABLE = "samples"
WITHOUT = "This run has no samples of its machine's use."

#: Columns whose means say how the machine was used.
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

#: Most times of a series: more are joined to intervals.
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
    """Those of the columns that have numbers, by name."""
    found = {name: _series(e, name) for group in columns for name in group}
    return {name: values for name, values in found.items() if values is not None}


def total(e: Evidence, name: str) -> Series | None:
    """A column summed over the nodes that measure it; None where nobody does."""
    one = _series(e, name)
    if one is None:
        return None
    nodes = len(np.unique(e.column(TABLE, "node")[np.isfinite(e.column(TABLE, name).astype(float))]))
    return Series(name, one.t, nodes * one.mean, nodes * one.mean, nodes * one.mean, nodes * one.average)


def lengths(e: Evidence) -> np.ndarray:
    """f8 [samples]: length of each window in s, from the end of its node's window before, or core start, to
    its own."""
    t, node = e.column(TABLE, "t"), e.column(TABLE, "node")
    follows = np.append(False, node[1:] == node[:-1])[: len(node)]
    return t - np.where(follows, np.roll(t, 1), 0.0)


def mean(e: Evidence, name: str) -> float:
    """The mean of a column over all nodes and the whole run, each window by its length; NaN where nobody
    measured.

    Windows differ in length, where nodes join measurements or the last one is cut: a mean over rows would
    count short ones too much.
    """
    values, seconds = e.column(TABLE, name).astype(float), lengths(e)
    known = np.isfinite(values) & (seconds > 0)
    return float(np.average(values[known], weights=seconds[known])) if known.any() else math.nan


def means(e: Evidence) -> dict[str, float]:
    """The means of all columns of USED by name, empty without samples."""
    return {name: mean(e, name) for name in USED} if has_rows(e) else {}


def has_rows(e: Evidence) -> bool:
    """Whether the file has samples at all (older files have no such table)."""
    return TABLE in e.result.tables and len(e.result.tables[TABLE].get("t", ())) > 0


def _series(e: Evidence, name: str) -> Series | None:
    if not has_rows(e) or name not in e.result.tables[TABLE]:
        return None
    t, values = e.column(TABLE, "t"), e.column(TABLE, name).astype(float)
    known = np.isfinite(t) & np.isfinite(values) & (values >= 0)
    if not known.any():
        return None
    t, values = t[known], values[known]

    # Nodes are sampled at about the same times: each interval between them has one value of each node, or
    # more.
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
