# SPDX-License-Identifier: Apache-2.0
"""Compute energy from readings of devices: wrapping counters, power over time, energy of the core time.

Devices do not measure fans, power supplies, network, or memory without a RAPL counter. This measurement is
called level 0, below the levels of the EE HPC Working Group's methodology (level 1 needs a meter outside of
the node).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

#: Name of a measurement by the devices themselves.
LEVEL = "level 0: device only"

#: Text for an energy that is not known.
NOT_MEASURED = "not measured"

#: Largest part of the core time, at its end, that a node's samples may not cover; it counts with the last
#: power.
UNCOVERED_PART = 0.01


def counted(before: int, after: int, span: int = 0) -> int:
    """Return the counts between two readings of a counter that restarts at 0 after `span` (0: never).

    Raises ValueError if the counter went back and `span` does not explain it.
    """
    if after >= before:
        return after - before
    if span <= max(before, after):
        raise ValueError(f"a counter went back from {before} to {after}, and does not wrap at {span}")
    return after - before + span


@dataclass
class EnergyCounter:
    """Turn readings of a counter into joules since the first reading.

    The counter has `unit` J a step, and wraps at `span` (0: never).
    """

    unit: float
    span: int = 0
    joules: float = 0.0
    last: int | None = None

    def add(self, value: int) -> float:
        """Add a reading and return the energy in J. Raises ValueError like :func:`counted`."""
        if self.last is not None:
            self.joules += counted(self.last, value, self.span) * self.unit
        self.last = value
        return self.joules


@dataclass
class Integral:
    """Joules since the first reading of a power, by the trapezoidal rule.

    A missing reading is not added; the rule then joins its neighbours by a straight line.
    """

    joules: float = 0.0
    last: tuple[float, float] | None = None

    def add(self, t: float, watts: float) -> float:
        """Add a reading of `watts` at time `t` (s) and return the energy in J."""
        if self.last is not None:
            self.joules += (t - self.last[0]) * (watts + self.last[1]) / 2
        self.last = t, watts
        return self.joules


def energy_at(t: np.ndarray, energy: np.ndarray, at: float) -> float:
    """Return the energy (J) from core start to time `at` (s).

    `energy` (J) holds readings at the ascending times `t` (s); at time 0 it is 0. It is interpolated between
    readings, and extrapolated after the last one. NaN without a reading, or if more than UNCOVERED_PART of
    the time is after the last reading.
    """
    known = np.isfinite(energy)
    times, joules = np.append(0.0, t[known]), np.append(0.0, energy[known])
    if len(times) == 1 or times[-1] < (1 - UNCOVERED_PART) * at:
        return math.nan
    if at <= times[-1]:
        return float(np.interp(at, times, joules))
    slope = (joules[-1] - joules[-2]) / max(times[-1] - times[-2], 1e-9)
    return float(joules[-1] + slope * (at - times[-1]))


def core_energy(
    samples: Mapping[str, np.ndarray], hosts: Mapping[int, str], core_seconds: float, sources: Iterable[str]
) -> tuple[float, str]:
    """Return the energy (J) of the core time over all nodes, and a text with its level.

    The energy is NaN if that of any host is not known; the text then gives the reason.

    Arguments:
        samples: the columns t, node and energy_joules of /samples, ordered by node.
        hosts: host name of each node; -1 is the coordinator. Each node with a measurement counts. A node
            without one may be missing if another node of the same host has one.
        core_seconds: length of the core time in seconds.
        sources: the power sources of the nodes' inventories, each text once.
    """
    source = "; ".join(sources)
    nodes, first = np.unique(samples["node"], return_index=True)
    if not len(nodes):
        return math.nan, f"{NOT_MEASURED}: there are no samples"

    seen, measured, total = dict[str, None](), set[str](), 0.0
    for node, own in zip(nodes.tolist(), np.split(np.arange(len(samples["node"])), first[1:]), strict=True):
        host = hosts.get(node, f"node {node}")
        seen[host] = None
        joules = energy_at(samples["t"][own], samples["energy_joules"][own], core_seconds)
        if math.isfinite(joules):
            measured.add(host)
            total += joules
    every = dict.fromkeys([*(host for node, host in hosts.items() if node >= 0), *seen])
    unknown = [host for host in every if host not in measured]
    if unknown:
        where = f"on {len(unknown)} of {len(every)} hosts, first {unknown[0]}"
        return math.nan, f"{NOT_MEASURED} {where}" + (f": {source}" if source else "")

    alone = hosts.get(-1, "")
    left_out = f"; without {alone}, the coordinator's host" if alone and alone not in measured else ""
    return total, f"{LEVEL}: {source or 'source unknown'}{left_out}"
