# SPDX-License-Identifier: Apache-2.0
"""The devices that trainers drive, by /ranks and the inventory, and their peak rates."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aiperf_mpi.config.declared import Declared
from aiperf_mpi.machine.peaks import FORMS, fastest, peak_of, processor_ops
from aiperf_mpi.results.file.schema import Columns

#: JAX's name of a CPU device.
CPU = "cpu"

#: Most replicas of a segment: a damaged file must not fill the memory.
MOST_REPLICAS = 1 << 20

#: How /ranks/device_uuid begins for a rank without UUIDs; the reason follows.
NO_UUIDS = "none: "

_DRIVEN = re.compile(r"([1-9]\d{0,4}) x (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Peak rates in op/s of the devices of each replica at the run's precision.

    Attributes:
        peaks: f8 [replicas], NaN if a device's rate is not known; empty if no trainer reported its devices.
        bounds: f8 [replicas], what no rate may exceed, NaN for none. It is the peak, but none for processors,
            which announce it themselves, and that of the fastest known device for an unknown accelerator.
        source: the documents of the peaks, or why none is known.
        official: all devices are in the table of peaks or declared.
        declared: the declaration, if a device has its peak from it, else "".
        disagreements: ranks with devices in /ranks and in the inventory that have different rates.
        shares: f8 [replicas], the share of the core time in which each was there; empty: all of it.
    """

    peaks: np.ndarray
    bounds: np.ndarray
    source: str
    official: bool
    declared: str = ""
    disagreements: tuple[str, ...] = ()
    shares: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def total(self) -> float:
        """The peak rate of all devices in op/s, the mean over the core time; NaN unless all rates are
        known."""
        if not len(self.peaks):
            return float("nan")
        return float((self.peaks * self.shares).sum() if len(self.shares) else self.peaks.sum())

    def over(self, replicas: np.ndarray, seconds: np.ndarray) -> Ceiling:
        """Return the ceiling of a run of several segments from that of its last one.

        All replicas of a run have the same devices. Those that are gone have the highest of the known rates.

        Arguments:
            replicas: number of replicas of each segment, i8 [segments].
            seconds: core time of each segment, f8 [segments].
        """
        if not len(self.peaks) or len(replicas) <= 1:
            return self
        most = max(int(replicas.max()), len(self.peaks))
        if most > MOST_REPLICAS:
            raise ValueError(f"/segments/n_replicas has {most}, more than {MOST_REPLICAS}")
        gone = most - len(self.peaks)
        there = np.arange(most)[:, None] < replicas[None, :]
        return replace(
            self,
            peaks=np.append(self.peaks, np.full(gone, self.peaks.max())),
            bounds=np.append(self.bounds, np.full(gone, self.bounds.max())),
            shares=(there * seconds).sum(axis=1) / max(float(seconds.sum()), 1e-9),
        )


#: The peak rates of a run without devices in its rows.
UNKNOWN = Ceiling(np.zeros(0), np.zeros(0), "no peak known: its rows do not say its devices", False)


@dataclass(frozen=True, slots=True)
class _Rate:
    """Peak and bound of one device in op/s, NaN for none; `official` if an official run may have it."""

    peak: float
    bound: float
    source: str = "no peak known"
    official: bool = False


def driven(text: str) -> tuple[int, str]:
    """Return number and kind of a trainer's devices from `/ranks/device`, such as `4 x NVIDIA H200`.

    Raises ValueError for another text.
    """
    match = _DRIVEN.fullmatch(text)
    if match is None:
        raise ValueError(f"device is {text[:60]!r}, not a number of devices of a kind")
    return int(match[1]), match[2]


def ceiling(
    ranks: Columns, segments: Columns, inventory: Mapping[str, Any], precision: str, declared: Declared
) -> Ceiling:
    """Return the peak rates of the devices of each replica of a run, over its segments.

    Arguments:
        segments: the columns of /segments; the inventory is that of the last one.
        ranks, inventory, precision, declared: as for `ceiling_of_ranks`.

    Raises ValueError as `ceiling_of_ranks` does.
    """
    own = ranks["segment"] == len(segments["segment"])
    n_replicas = int(segments["n_replicas"][-1])
    last = {name: values[own] for name, values in ranks.items()}
    found = ceiling_of_ranks(last, inventory, precision, n_replicas, declared)
    return found.over(segments["n_replicas"], segments["t_end"] - segments["t_start"])


def ceiling_of_ranks(
    ranks: Columns, inventory: Mapping[str, Any], precision: str, n_replicas: int, declared: Declared
) -> Ceiling:
    """Return the peak rates of the devices of each replica.

    Arguments:
        ranks: the columns of /ranks, of one segment.
        inventory: the run's inventory, with processors and accelerators of each node in `nodes`.
        precision: type of the matrix operands in the compiled programs.
        n_replicas: number of replicas of the run.
        declared: the declared peak of the run's configuration.

    Raises ValueError if the trainers do not belong to these replicas, or a device text cannot be read.

    A device is looked up in the table of peaks by the name that JAX gave it, then by the names that the
    inventory gives the accelerators of its node, then in the declaration. Rates that the inventory states are
    ignored: a number in the file proves nothing.
    """
    role, replicas = ranks["role"].astype(str), ranks["replica"]
    trainers = np.flatnonzero(role == "trainer")
    if not len(trainers):
        return UNKNOWN
    if not np.array_equal(np.unique(replicas[trainers]), np.arange(min(n_replicas, len(trainers) + 1))):
        raise ValueError(f"/ranks/replica does not have the {n_replicas} replicas")
    nodes, hosts = ranks["node"].tolist(), Counter(ranks["hostname"][trainers].tolist())
    entries = _entries(inventory, sorted(set(nodes)))
    peaks, bounds = np.zeros(n_replicas), np.zeros(n_replicas)
    sources, disagreements, rates = [], [], []
    for rank in trainers.tolist():
        count, kind = driven(str(ranks["device"][rank]))
        entry = entries.get(nodes[rank], {})
        names = _names(entry)
        if _disagrees(kind, names):
            disagreements.append(
                f"rank {rank} drives {kind!r}, but the inventory gives node {nodes[rank]} "
                f"{', '.join(sorted(names))!r}"
            )
        rate = _rate(kind, names, declared, precision)
        if kind == CPU and not rate.official:
            # The trainers of a host share its processors, whatever number of devices they are cut into.
            count = 1
            rate = _processors(entry.get("cpu"), precision, hosts[ranks["hostname"][rank]])
        peaks[replicas[rank]] += count * rate.peak
        bounds[replicas[rank]] += count * rate.bound
        sources.append(f"{kind}: {rate.source}")
        rates.append(rate)
    return Ceiling(
        peaks,
        bounds,
        "; ".join(dict.fromkeys(sources)),
        all(rate.official for rate in rates),
        _words(declared) if any(rate.source == _words(declared) for rate in rates) else "",
        tuple(disagreements),
    )


def has_peak(device: str, inventory: Mapping[str, Any], precision: str, declared: Declared) -> bool:
    """Return whether an official run may have these devices: in the table of peaks, or declared.

    `device` is as in /ranks/device, `inventory` as for `ceiling`.
    """
    _, kind = driven(device)
    entries: Sequence[Mapping[str, Any]] = inventory.get("nodes") or ({},)
    return all(_rate(kind, _names(entry), declared, precision).official for entry in entries)


def _rate(kind: str, names: list[str], declared: Declared, precision: str) -> _Rate:
    """Return the rate of a device that JAX calls `kind`, on a node with accelerators of these names."""
    known = [peak for name in names if (peak := peak_of(name)) is not None]
    peak = peak_of(kind)
    if peak is None and kind != CPU and known and len(known) == len(names):
        peak = max(known, key=lambda other: other.matrix_ops(precision))
    if peak is not None:
        ops = peak.matrix_ops(precision)
        return _Rate(ops, ops, peak.source, official=True)
    if kind == declared.device:
        return _Rate(declared.peak_ops, declared.peak_ops, _words(declared), official=True)
    return _Rate(math.nan, math.nan if kind == CPU else max(fastest(form, precision) for form in FORMS))


def _words(declared: Declared) -> str:
    """Return a declaration in words."""
    return (
        f"declared, not in the table: {declared.peak_ops:.4e} op/s of a {declared.form} by "
        f"{declared.source}; {declared.vouched_by} vouches for it"
    )


def _processors(processor: Any, precision: str, trainers: int) -> _Rate:
    """Return the rate of a trainer's share of its host's processors, which `trainers` trainers share."""
    ops = processor_ops(processor, precision)
    if math.isnan(ops):
        return _Rate(math.nan, math.nan)
    return _Rate(
        ops / trainers,
        math.nan,
        f"{processor['cores']} cores, vectors of {processor['vector_bits']} bits and the clock that the host "
        "announces",
    )


def _disagrees(kind: str, names: list[str]) -> bool:
    """Return whether a device cannot be one of a node's accelerators, all of which the table knows.

    The inventory has no accelerators of a node that trains on CPUs.
    """
    if kind == CPU:
        return bool(names)
    peak, others = peak_of(kind), [peak_of(name) for name in names]
    return peak is not None and bool(others) and None not in others and peak not in others


def _names(entry: Mapping[str, Any]) -> list[str]:
    """Return the names of the accelerators of an inventory's entry, each once."""
    devices = entry.get("accelerators")
    return list(dict.fromkeys(str(one["name"]) for one in devices)) if isinstance(devices, list) else []


def _entries(inventory: Mapping[str, Any], nodes: list[int]) -> dict[int, Mapping[str, Any]]:
    """Return the inventory's entry of each of `nodes` (ascending).

    Raises ValueError if entries of the inventory share nodes: the work would be their product.
    """
    of_node: dict[int, Mapping[str, Any]] = {}
    named = 0
    for entry in inventory.get("nodes", ()):
        for word in filter(None, str(entry.get("nodes", "")).split(",")):
            first, _, last = word.partition("-")
            own = nodes[bisect_left(nodes, int(first)) : bisect_right(nodes, int(last or first))]
            if (named := named + len(own)) > len(nodes):
                raise ValueError("/system/inventory_json names a node more than once")
            of_node |= dict.fromkeys(own, entry)
    return of_node
