# SPDX-License-Identifier: Apache-2.0
"""Sections of the report: how the nodes were used in the core time, and where the ranks ran."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.samples import WITHOUT, has_rows, lengths, mean
from aiperf_mpi.results.judge.judge import Verdict
from aiperf_mpi.results.report.details import columns_of

#: Columns of the samples that are shown: column, title, divisor, unit.
USE = (
    ("cpu_percent", "host's CPUs", 1, "%"),
    ("process_percent", "trainer's process", 1, "% of a CPU"),
    ("memory_bytes", "host's memory", 1e9, "GB"),
    ("process_bytes", "trainer's memory", 1e9, "GB"),
    ("device_percent", "accelerators", 1, "%"),
    ("device_memory_bytes", "accelerators' memory", 1e9, "GB a node"),
    ("device_mhz", "accelerators' clock", 1, "MHz"),
    ("device_celsius", "hottest accelerator", 1, "°C"),
    ("device_watts", "accelerators' power", 1, "W a node"),
    ("power_watts", "measured power", 1, "W a node"),
)

#: Columns of moved bytes: column, title.
MOVED = (
    ("read_bytes", "read from disks"),
    ("write_bytes", "written to disks"),
    ("net_bytes", "through network interfaces"),
    ("fabric_bytes", "through InfiniBand ports"),
)

#: Most ranks whose places are shown.
MAX_RANKS = 40


def utilisation(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show the use of the machine over all nodes and the core time: mean, and lowest and highest window."""
    if not has_rows(e):
        yield Text(f"  {WITHOUT}")
        return
    rows = e.table("samples")
    node, seconds = rows["node"], lengths(e)
    table = columns_of("what", "mean", "lowest", "highest", "unit", left=("what", "unit"))
    for name, title, divisor, unit in USE:
        known = np.isfinite(rows[name]) & (seconds > 0)
        if known.any():
            values = rows[name][known] / divisor
            table.add_row(
                title, f"{mean(e, name) / divisor:.1f}", f"{values.min():.1f}", f"{values.max():.1f}", unit
            )
        else:
            table.add_row(title, "not read", "", "", "")
    yield table

    # The counters are those of a whole host, so count only the first node of each host.
    hosts = dict(zip(e.column("ranks", "node").tolist(), e.column("ranks", "hostname").tolist(), strict=True))
    firsts = {hosts.get(number, number): number for number in sorted(set(node.tolist()), reverse=True)}
    last = np.append(node[1:] != node[:-1], True) & np.isin(node, list(firsts.values()))
    moved = []
    for name, title in MOVED:
        amounts = rows[name][last]
        known = np.isfinite(amounts)
        moved.append(
            f"{amounts[known].sum() / 1e9:.3f} GB {title}" if known.any() else f"unknown amount {title}"
        )
    yield Text(f"  In all: {', '.join(moved)}.")
    cost = float(rows["sample_seconds"].sum() / seconds.sum())
    count = int(rows["count"].sum())
    nodes = len(np.unique(node))
    yield Text(
        f"  {count} samples of {nodes} {'node' if nodes == 1 else 'nodes'} took {cost:.4%} of a core on each."
    )


def places(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show where the ranks ran, and the offset of their clocks from rank 0's."""
    columns = e.table("ranks")
    count = len(columns["rank"])
    table = columns_of(
        "rank", "host", "CPUs", "NUMA", "clock (ms)", "+- (ms)", "devices", left=("host", "CPUs", "devices")
    )
    for row in range(min(count, MAX_RANKS)):
        table.add_row(
            str(columns["rank"][row]),
            columns["hostname"][row],
            columns["cpus"][row],
            columns["numa"][row],
            f"{1e3 * columns['clock_offset'][row]:.3f}",
            f"{1e3 * columns['clock_uncertainty'][row]:.3f}",
            columns["device_uuid"][row],
        )
    yield table
    if count > MAX_RANKS:
        worst = float(np.max(columns["clock_uncertainty"]))
        yield Text(
            f"  the first {MAX_RANKS} of {count} ranks; the largest clock uncertainty of all ranks is "
            f"{1e3 * worst:.3f} ms"
        )
