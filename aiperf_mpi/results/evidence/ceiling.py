# SPDX-License-Identifier: Apache-2.0
"""The devices that trainers drive, by /ranks and the inventory, and their peak rates."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from aiperf_mpi.machine.peaks import Peak, peak_of
from aiperf_mpi.results.file.schema import Columns

#: JAX's name of a CPU device.
CPU = "cpu"

#: How /ranks/device_uuid begins for a rank without UUIDs; the reason follows.
NO_UUIDS = "none: "

_DRIVEN = re.compile(r"([1-9]\d{0,4}) x (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Peak rates in op/s of the devices of each replica at the run's precision (f8 [replicas]).

    NaN if a rate is not known; no replicas if no trainer reported its devices. `source` names the documents
    of the rates, or why none is known; `disagreements` are ranks with devices in /ranks and in the inventory
    that have different rates.
    """

    replicas: np.ndarray
    source: str
    disagreements: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """The peak rate of all devices in op/s, NaN unless all rates are known."""
        return float(self.replicas.sum()) if len(self.replicas) else float("nan")


#: The peak rates of a run without devices in its rows.
UNKNOWN = Ceiling(np.zeros(0), "no peak known: its rows do not say its devices")


def driven(text: str) -> tuple[int, str]:
    """Return number and kind of a trainer's devices from `/ranks/device`, such as `4 x NVIDIA H200`.

    Raises ValueError for another text.
    """
    match = _DRIVEN.fullmatch(text)
    if match is None:
        raise ValueError(f"device is {text[:60]!r}, not a number of devices of a kind")
    return int(match[1]), match[2]


def ceiling(ranks: Columns, inventory: Mapping[str, Any], precision: str, n_replicas: int) -> Ceiling:
    """Return the peak rates of the devices of each replica.

    Arguments:
        ranks: the columns of /ranks.
        inventory: the run's inventory, with the accelerators of each node in `nodes`.
        precision: type of the matrix operands in the compiled programs.
        n_replicas: number of replicas of the run.

    Raises ValueError if the trainers do not belong to these replicas, or a device text cannot be read.

    A device is looked up in the table of peaks by the name that JAX gave it. One that is not in the table has
    the highest rate that the inventory states for its node. Stated rates of devices in the table are ignored:
    a number in the file proves nothing.
    """
    role, replicas = ranks["role"].astype(str), ranks["replica"]
    trainers = np.flatnonzero(role == "trainer")
    if not len(trainers):
        return UNKNOWN
    if not np.array_equal(np.unique(replicas[trainers]), np.arange(min(n_replicas, len(trainers) + 1))):
        raise ValueError(f"/ranks/replica does not have the {n_replicas} replicas")
    nodes = ranks["node"].tolist()
    of_node = _accelerators(inventory, sorted(set(nodes)))
    rates, sources, disagreements = np.zeros(n_replicas), [], []
    for rank in trainers.tolist():
        count, kind = driven(str(ranks["device"][rank]))
        stated = of_node.get(nodes[rank], {})
        peak, disagrees = _peak(kind, stated, precision)
        if disagrees:
            names = ", ".join(sorted(stated))
            disagreements.append(
                f"rank {rank} drives {kind!r}, but the inventory gives node {nodes[rank]} {names!r}"
            )
        rates[replicas[rank]] += math.nan if peak is None else count * peak.matrix_ops(precision)
        sources.append(f"{kind}: {'no peak known' if peak is None else peak.source}")
    return Ceiling(rates, "; ".join(dict.fromkeys(sources)), tuple(disagreements))


def _peak(kind: str, stated: Mapping[str, Peak | None], precision: str) -> tuple[Peak | None, bool]:
    """Return the peak rates of a device on a node with these accelerators, and whether the two disagree."""
    peak, others = peak_of(kind), list(stated.values())
    known = [other for other in others if other is not None]
    if kind == CPU:
        # The inventory has no accelerators of a node that trains on CPUs.
        return None, bool(others)
    if peak is not None:
        return peak, bool(others) and len(known) == len(others) and peak not in known
    if not known or len(known) < len(others):
        return None, False
    return max(known, key=lambda other: other.matrix_ops(precision)), False


def _accelerators(inventory: Mapping[str, Any], nodes: list[int]) -> dict[int, dict[str, Peak | None]]:
    """Return the accelerators of each of `nodes` (ascending) by name: peak rates of the table, else stated.

    Raises ValueError if entries of the inventory share nodes: the work would be their product.
    """
    of_node: dict[int, dict[str, Peak | None]] = {}
    named = 0
    for entry in inventory.get("nodes", ()):
        devices = entry.get("accelerators")
        if not isinstance(devices, list):
            continue
        peaks = dict(_named(devices))
        for word in str(entry.get("nodes", "")).split(","):
            first, _, last = word.partition("-")
            own = nodes[bisect_left(nodes, int(first)) : bisect_right(nodes, int(last or first))]
            if (named := named + len(own)) > len(nodes):
                raise ValueError("/system/inventory_json names a node more than once")
            of_node |= dict.fromkeys(own, peaks)
    return of_node


def _named(devices: list[Mapping[str, Any]]) -> Iterator[tuple[str, Peak | None]]:
    """Yield name and peak rates of each accelerator of an inventory's node."""
    for device in devices:
        name, stated = str(device["name"]), device.get("peak")
        peak = peak_of(name)
        if peak is None and isinstance(stated, dict):
            values = {field.name: stated.get(field.name, math.nan) for field in fields(Peak)}
            numbers = [value for key, value in values.items() if key != "source"]
            known = all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers)
            peak = Peak(**values) if known else None
        yield name, peak
