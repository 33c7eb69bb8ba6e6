# SPDX-License-Identifier: Apache-2.0
"""Energy from what devices report: counters that wrap, power over time, and the energy of the core time.

What devices say of themselves leaves out fans, power supplies, network, and memory where RAPL shows no
counter of it. It is called level 0 here, below the levels of the EE HPC Working Group's methodology (level 1
begins with a meter outside of the node).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

#: What a measurement by the devices themselves is called.
LEVEL = "level 0: device only"

#: How an energy that is not known is called.
NOT_MEASURED = "not measured"

#: Part of the core time that a node's samples may leave uncovered at its end; that part counts with their
#: last power.
UNCOVERED_PART = 0.01


def counted(before: int, after: int, span: int = 0) -> int:
    """What a counter counted between two readings; it begins anew at `span` (0: it never does).

    Raises ValueError where it went back without a span that explains it.
    """
    if after >= before:
        return after - before
    if span <= max(before, after):
        raise ValueError(f"a counter went back from {before} to {after}, and does not wrap at {span}")
    return after - before + span


@dataclass
class Count:
    """Joules since the first reading of a counter of `unit` J that begins anew at `span` counts (0:
    never)."""

    unit: float
    span: int = 0
    joules: float = 0.0
    last: int | None = None

    def add(self, value: int) -> float:
        """The energy with a further reading; raises ValueError like `counted`."""
        if self.last is not None:
            self.joules += counted(self.last, value, self.span) * self.unit
        self.last = value
        return self.joules


@dataclass
class Integral:
    """Joules since the first reading of a power, by the trapezoidal rule. A reading that is missing is left
    out, so that a straight line between its neighbours stands for it."""

    joules: float = 0.0
    last: tuple[float, float] | None = None

    def add(self, t: float, watts: float) -> float:
        """The energy with a further reading at `t` (s)."""
        if self.last is not None:
            self.joules += (t - self.last[0]) * (watts + self.last[1]) / 2
        self.last = t, watts
        return self.joules


def energy_at(t: np.ndarray, energy: np.ndarray, at: float) -> float:
    """The energy (J) at time `at` of readings since core start: `energy` (J) at ascending times `t` (s), 0 at
    0.

    Between readings it grows evenly, behind the last one with the power before it. NaN without a reading, and
    where more than UNCOVERED_PART of the time lies behind the last one.
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
    """Energy (J) of the core time over all nodes, NaN if any host's is unknown, and in words its level or
    why.

    Arguments:
        samples: the columns t, node and energy_joules of /samples, ordered by node.
        hosts: name of the host of each node; -1 is the coordinator. Every node that measured counts, whatever
            its host is called; a node that measured nothing is excused where another one of its host did.
        core_seconds: length of the core time.
        sources: what the nodes' inventories say of their power, each text once.
    """
    said = "; ".join(sources)
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
        return math.nan, f"{NOT_MEASURED} {where}" + (f": {said}" if said else "")

    alone = hosts.get(-1, "")
    left_out = f"; without {alone}, the coordinator's host" if alone and alone not in measured else ""
    return total, f"{LEVEL}: {said or 'source unknown'}{left_out}"
