# SPDX-License-Identifier: Apache-2.0
"""The devices that trainers drive, as /ranks and the inventory name them, and what they can compute at
most."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from aiperf_mpi.machine.peaks import Peak, peak_of
from aiperf_mpi.results.file.schema import Columns

#: What JAX calls the devices that CPUs play.
CPU = "cpu"

#: How /ranks/device_uuid begins where a rank has no UUIDs to state; the reason follows.
NO_UUIDS = "none: "

_DRIVEN = re.compile(r"([1-9]\d{0,4}) x (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Peak rates in op/s of the devices of each replica at the run's precision: f8 [replicas], NaN where none
    is known.

    Empty where no trainer reported its devices. `source` says whose documents they are from, or why none is
    known; `disagreements` where /ranks and the inventory name devices of different rates.
    """

    replicas: np.ndarray
    source: str
    disagreements: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """The peak rate of all devices in op/s, NaN unless it is known of all of them."""
        return float(self.replicas.sum()) if len(self.replicas) else float("nan")


#: Of a run whose rows do not say what its devices are.
UNKNOWN = Ceiling(np.zeros(0), "no peak known: its rows do not say its devices")


def driven(text: str) -> tuple[int, str]:
    """Number and kind of the devices of a trainer from `/ranks/device`, such as `4 x NVIDIA H200`.

    Raises ValueError for another text.
    """
    found = _DRIVEN.fullmatch(text)
    if found is None:
        raise ValueError(f"device is {text[:60]!r}, not a number of devices of a kind")
    return int(found[1]), found[2]


def ceiling(ranks: Columns, inventory: Mapping[str, Any], precision: str, n_replicas: int) -> Ceiling:
    """What the devices of each replica can compute at most.

    Arguments:
        ranks: the columns of /ranks.
        inventory: that of the run, whose `nodes` say which accelerators each of them has.
        precision: of the matrix operands in the compiled programs.
        n_replicas: replicas of the run.

    Raises ValueError where the trainers are not of these replicas, or a text of theirs names no devices.

    A device is looked up by the name that JAX gave it; one that the table does not know has the highest of
    the rates that the inventory states of its node. What the file states of a device that the table knows is
    not read: a number in the file proves nothing.
    """
    role, replicas = ranks["role"].astype(str), ranks["replica"]
    trainers = np.flatnonzero(role == "trainer")
    if not len(trainers):
        return UNKNOWN
    if not np.array_equal(np.unique(replicas[trainers]), np.arange(min(n_replicas, len(trainers) + 1))):
        raise ValueError(f"/ranks/replica does not have the {n_replicas} replicas")
    nodes = ranks["node"].tolist()
    of_node = _accelerators(inventory, max(nodes, default=-1) + 1)
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
    """The peak rates of a device on a node with these accelerators, and whether the two are not of one
    kind."""
    peak, others = peak_of(kind), list(stated.values())
    known = [other for other in others if other is not None]
    if kind == CPU:
        # Of a node whose trainers compute on CPUs no accelerators are described.
        return None, bool(others)
    if peak is not None:
        return peak, bool(others) and len(known) == len(others) and peak not in known
    if not known or len(known) < len(others):
        return None, False
    return max(known, key=lambda other: other.matrix_ops(precision)), False


def _accelerators(inventory: Mapping[str, Any], n_nodes: int) -> dict[int, dict[str, Peak | None]]:
    """The accelerators of each node by name, with their peak rates: those of the table, else the stated
    ones."""
    found: dict[int, dict[str, Peak | None]] = {}
    for entry in inventory.get("nodes", ()):
        devices = entry.get("accelerators")
        if not isinstance(devices, list):
            continue
        peaks = dict(_named(devices))
        for word in str(entry.get("nodes", "")).split(","):
            first, _, last = word.partition("-")
            found |= dict.fromkeys(range(int(first), min(int(last or first) + 1, n_nodes)), peaks)
    return found


def _named(devices: list[Mapping[str, Any]]) -> Iterator[tuple[str, Peak | None]]:
    for device in devices:
        name, stated = str(device["name"]), device.get("peak")
        peak = peak_of(name)
        if peak is None and isinstance(stated, dict):
            values = {field.name: stated.get(field.name, math.nan) for field in fields(Peak)}
            numbers = [value for key, value in values.items() if key != "source"]
            known = all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers)
            peak = Peak(**values) if known else None
        yield name, peak
