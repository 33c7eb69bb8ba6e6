# SPDX-License-Identifier: Apache-2.0
"""The check of the samples: windows in order, values within their bounds, energy consistent with power."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.segments import Part, parts
from aiperf_mpi.results.file.schema import Columns
from aiperf_mpi.results.judge.checks.registry import check, rows_where
from aiperf_mpi.results.judge.checks.timing import CLOCK_SLACK

#: How far the energy of a window may differ from its power times its length, in parts of it and in J.
ENERGY_SLACK, ENERGY_SLACK_JOULES = 1e-6, 1e-3

#: A share of 100 % may be exceeded by this much, as two counters are not read at the same moment.
PERCENT_SLACK = 1.0

#: Columns that only grow in a run, and columns that cannot be negative.
CUMULATIVE = ("energy_joules", "read_bytes", "write_bytes", "net_bytes", "fabric_bytes")
NOT_NEGATIVE = (
    *CUMULATIVE,
    "process_percent",
    "memory_bytes",
    "process_bytes",
    "device_memory_bytes",
    "device_mhz",
    "device_watts",
    "power_watts",
    "sample_seconds",
)

#: Columns that the monitor itself knows, and columns that a host reports all together or not at all. All
#: other columns are NaN where they cannot be read.
ALWAYS = ("t", "sample_seconds")
OF_HOST = ("cpu_percent", "process_percent", "memory_bytes", "process_bytes")

#: Columns that only nodes with readable accelerators have.
OF_DEVICES = ("device_percent", "device_memory_bytes", "device_mhz", "device_celsius", "device_watts")


@check(
    "I17",
    "windows of each node in order and within the run, numbers finite or NaN by rule, energy = power x time",
    why="Use and energy of the machine must be those of the time that counts.",
)
def samples(e: Evidence) -> Iterator[str]:
    """The samples of the machine's use are those of the core time."""
    rows = e.table("samples")
    yield f"= {len(rows['t'])} samples of {len(np.unique(rows['node']))} nodes"
    known = np.isin(rows["segment"], e.column("segments", "segment"))
    yield from rows_where("samples", ~known, "segment does not exist")
    yield from rows_where("samples", np.diff(rows["segment"], prepend=1) < 0, "segments are not in order")
    for part in parts(e):
        yield from _of_segment(part)
    yield from _values(rows)


def _of_segment(part: Part) -> Iterator[str]:
    """Check the windows of one segment; those of one that was killed may be missing at its end."""
    e = part.evidence
    rows, core_seconds = e.table("samples"), e.attribute("core_seconds")
    total = e.attribute("total_seconds") if part.proven else math.inf
    yield from _windows(rows, core_seconds, total, e.attribute("n_nodes"))
    if e.config.monitor.seconds > 0 and part.proven:
        yield from _whole(e, rows, core_seconds)
    yield from _growth(rows)


def _values(rows: Columns) -> Iterator[str]:
    """Check that each value is one that can be measured."""
    asked = ~np.all([np.isnan(rows[name]) for name in OF_HOST], axis=0)
    for name, values in rows.items():
        if values.dtype.kind == "f":
            known = name in ALWAYS or (asked if name in OF_HOST else False)
            odd = np.isinf(values) | (known & np.isnan(values))
            yield from rows_where("samples", odd, f"{name} is not a finite number")
    for name in NOT_NEGATIVE:
        yield from rows_where("samples", rows[name] < 0, f"{name} is negative")
    for name in ("cpu_percent", "device_percent"):
        outside = (rows[name] < 0) | (rows[name] > 100 + PERCENT_SLACK)
        yield from rows_where("samples", outside, f"{name} is not between 0 and 100")
    yield from rows_where("samples", rows["count"] < 1, "count is below 1")
    yield from rows_where("samples", rows["devices"] < 0, "devices is negative")
    for name in OF_DEVICES:
        of_none = (rows["devices"] == 0) & ~np.isnan(rows[name])
        yield from rows_where("samples", of_none, f"{name} of a node without accelerators that are read")


def _follows(rows: Columns) -> np.ndarray:
    """Return a bool for each sample, whether the row before is of the same node."""
    return np.append(False, np.diff(rows["node"]) == 0)[: len(rows["node"])]


def _whole(e: Evidence, rows: Columns, core_seconds: float) -> Iterator[str]:
    """Check that every node has windows, up to core stop if the run reached its time limit."""
    nodes, last = np.unique(rows["node"][::-1], return_index=True)
    if len(nodes) != e.attribute("n_nodes"):
        yield f"/samples has windows of {len(nodes)} nodes, but the run has {e.attribute('n_nodes')}"
    unsure = float(np.max(e.column("ranks", "clock_uncertainty"), initial=0.0))
    ends = rows["t"][::-1][last]
    if e.attribute("end") == "time_limit" and np.any(ends < core_seconds - CLOCK_SLACK - unsure):
        yield (
            f"/samples of node {nodes[np.argmin(ends)]} end {core_seconds - ends.min():.3f} s before core "
            f"stop"
        )


def _windows(rows: Columns, core_seconds: float, total_seconds: float, n_nodes: int) -> Iterator[str]:
    """Check that the windows of a node follow one another, up to the first that ends after core stop."""
    t, node, follows = rows["t"], rows["node"], _follows(rows)
    yield from rows_where("samples", (node < 0) | (node >= n_nodes), "node does not exist")
    yield from rows_where(
        "samples", np.diff(node, prepend=node[:1]) < 0, "samples are not in the order of their nodes"
    )
    before = np.where(follows, np.roll(t, 1), 0.0)
    number = np.where(follows, np.roll(rows["window"], 1) + 1, 0)
    yield from rows_where("samples", rows["window"] != number, "its window is not the next one of its node")
    yield from rows_where("samples", ~(t > before), "its window does not end after the one before it")
    yield from rows_where("samples", follows & (before >= core_seconds), "its window begins after core stop")
    yield from rows_where(
        "samples", t > total_seconds + CLOCK_SLACK, "its window ends after the end of the run"
    )


def _growth(rows: Columns) -> Iterator[str]:
    """Check that counters only grow, and that energy grows by power x time."""
    follows = _follows(rows)
    for name in CUMULATIVE:
        shrunk = follows & (rows[name] < np.roll(rows[name], 1))
        yield from rows_where("samples", shrunk, f"{name} is lower than before")
    before = np.where(follows, np.roll(rows["energy_joules"], 1), 0.0)
    grown = rows["energy_joules"] - before
    expected = rows["power_watts"] * (rows["t"] - np.where(follows, np.roll(rows["t"], 1), 0.0))
    off = np.abs(grown - expected) > ENERGY_SLACK * rows["energy_joules"] + ENERGY_SLACK_JOULES
    yield from rows_where("samples", off, "energy_joules does not grow by power_watts in its window")
    alone = np.isnan(rows["power_watts"]) != np.isnan(grown)
    yield from rows_where(
        "samples", alone, "power_watts is known without energy_joules, or the other way round"
    )
    larger = rows["device_watts"] > rows["power_watts"] * (1 + ENERGY_SLACK) + ENERGY_SLACK_JOULES
    yield from rows_where("samples", larger, "device_watts is more than power_watts")
