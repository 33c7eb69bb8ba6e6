# SPDX-License-Identifier: Apache-2.0
"""Samples of a node's use and power while it works, from a thread that makes no MPI call.

A row stands for a window of one or more measurements and is of a fixed width whatever the number of devices,
so that its rank hands it to rank 0 like any other row. Energy is integrated here, over every measurement.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import psutil

from aiperf_mpi.machine.accelerators import Accelerators, DeviceReading
from aiperf_mpi.machine.energy import Count, Integral
from aiperf_mpi.machine.host import UNREAD, Host, HostReading
from aiperf_mpi.machine.rapl import MICROJOULE, Zone

#: Most rows of a run, and so some 160 MB of its result: beyond it a row stands for several measurements.
MAX_ROWS = 2**20

_MILLIJOULE = 1e-3


@dataclass(frozen=True)
class Probe:
    """What a node can be asked: its host, its accelerators (`expected` of them), its processors' counters.

    `power` says whether this node measures it: of several nodes on one host only the first does.
    """

    host: Host
    accelerators: Accelerators
    expected: int
    zones: tuple[Zone, ...]
    power: bool = True


def stride(n_nodes: int, time_limit: float, seconds: float) -> int:
    """Measurements that a row stands for, so that a run of `time_limit` s on `n_nodes` has at most MAX_ROWS
    rows."""
    return max(1, math.ceil(n_nodes * time_limit / seconds / MAX_ROWS))


class PowerMeter:
    """Energy (J) of a node's accelerators, and of all that is read of it, since the first measurement.

    The accelerators' energy is that of all of them, or unknown (NaN): by their counters, else by their power,
    as each says at the first measurement; one that says neither then is not measured. A node with
    accelerators that are not read has no known energy; RAPL's is added where it can be read, and where that
    fails later, the sum is not known any more. A counter that went back ends the measurement of its kind, and
    `warn` says so.
    """

    def __init__(self, probe: Probe, warn: Callable[[str], None]) -> None:
        self._probe, self._warn = probe, warn
        self._devices: list[Count | Integral] = []
        self._packages = [Count(MICROJOULE, zone.span) for zone in probe.zones]
        self._broken: set[str] = set()

    def read(self, t: float, devices: Sequence[DeviceReading]) -> tuple[float, float]:
        """Energy of the accelerators, and of all, at time `t` (s)."""
        if not self._probe.power:
            return math.nan, math.nan
        of_devices = self._of("accelerators", lambda: self._read_devices(t, devices))
        of_packages = self._of("RAPL", self._read_packages)
        if self._probe.expected:
            return of_devices, of_devices + (of_packages if self._packages else 0.0)
        return math.nan, of_packages

    def _of(self, kind: str, read: Callable[[], float]) -> float:
        if kind in self._broken:
            return math.nan
        try:
            return read()
        except (OSError, ValueError) as error:
            self._broken.add(kind)
            self._warn(f"energy of {kind} is not measured any more: {error}")
            return math.nan

    def _read_devices(self, t: float, devices: Sequence[DeviceReading]) -> float:
        if not devices or len(devices) != self._probe.expected:
            return math.nan
        if not self._devices:
            # What a device was read by first, it is read by to the end; all of them count from core start.
            silent = [n for n, d in enumerate(devices) if d.millijoules is None and math.isnan(d.watts)]
            if silent:
                raise ValueError(
                    f"accelerators {silent} of the node tell neither energy nor power at core start"
                )
            self._devices = [Integral() if d.millijoules is None else Count(_MILLIJOULE) for d in devices]
        total = 0.0
        for device, meter in zip(devices, self._devices, strict=True):
            if isinstance(meter, Count):
                total += meter.add(device.millijoules) if device.millijoules is not None else math.nan
            else:
                total += math.nan if math.isnan(device.watts) else meter.add(t, device.watts)
        return total

    def _read_packages(self) -> float:
        if not self._packages:
            return math.nan
        return sum(
            meter.add(zone.read()) for meter, zone in zip(self._packages, self._probe.zones, strict=True)
        )


class Sampler:
    """Measures a node, and makes a row of the measurements since the last row. No thread, no clock of its
    own.

    Arguments:
        node: the node's index.
        probe: what is asked.
        warn: takes a line about what cannot be measured any more.
    """

    def __init__(self, node: int, probe: Probe, warn: Callable[[str], None]) -> None:
        self._node, self._probe, self._warn = node, probe, warn
        self._unread = False
        self._meter = PowerMeter(probe, warn)
        self._window = 0
        self._begun: tuple[float, HostReading, float, float] | None = None
        self._readings: list[tuple[HostReading, list[DeviceReading]]] = []
        self._end: tuple[float, float, float] = (0.0, math.nan, math.nan)
        self._cost = 0.0

    def begin(self) -> None:
        """Core start, the time 0: the counters of later measurements count from here."""
        host, devices = self._host(), self._probe.accelerators.read()
        of_devices, energy = self._meter.read(0.0, devices)
        self._begun = 0.0, host, of_devices, energy

    def measure(self, t: float) -> None:
        """Measure now, at time `t` (s)."""
        spent = time.thread_time()
        devices = self._probe.accelerators.read()
        self._readings.append((self._host(), devices))
        self._end = (t, *self._meter.read(t, devices))
        self._cost += time.thread_time() - spent

    def _host(self) -> HostReading:
        """What the host does now; all NaN, and said once, where it cannot be asked: a run does not end for
        that."""
        if self._unread:
            return UNREAD
        try:
            return self._probe.host.read()
        except (OSError, NotImplementedError, psutil.Error) as error:
            self._unread = True
            self._warn(f"use of the host is not measured any more: {error or type(error).__name__}")
            return UNREAD

    def row(self) -> dict[str, float]:
        """The columns of a sample, by name, for the measurements since the last row; there must be one.

        What no accelerator told is left out. Raises RuntimeError without a measurement.
        """
        if self._begun is None or not self._readings:
            raise RuntimeError("a row of samples without a measurement")
        t0, before, devices0, energy0 = self._begun
        t1, devices1, energy1 = self._end
        host = self._readings[-1][0]
        values = {
            name: float(np.mean([getattr(reading, name) for reading, _ in self._readings]))
            for name in ("memory_bytes", "process_bytes")
        }
        values |= {
            name: getattr(host, name) for name in ("read_bytes", "write_bytes", "net_bytes", "fabric_bytes")
        }
        spent = max(host.cpu_seconds - before.cpu_seconds, 1e-9)
        row = dict(
            t=t1,
            node=self._node,
            window=self._window,
            count=len(self._readings),
            devices=len(self._readings[-1][1]),
            cpu_percent=min(100 * max(host.busy_seconds - before.busy_seconds, 0.0) / spent, 100.0),
            process_percent=100
            * (host.process_seconds - before.process_seconds)
            / max(host.at - before.at, 1e-9),
            device_watts=(devices1 - devices0) / (t1 - t0),
            power_watts=(energy1 - energy0) / (t1 - t0),
            energy_joules=energy1,
            sample_seconds=self._cost,
            **values,
            **self._of_devices(),
        )
        self._begun = (t1, host, devices1, energy1)
        self._readings, self._cost, self._window = [], 0.0, self._window + 1
        return row

    def _of_devices(self) -> dict[str, float]:
        """What the accelerators did: means over the measurements; NaN where one of them did not tell."""
        if not self._readings[-1][1]:
            return {}
        names = [item.name for item in fields(DeviceReading) if item.name != "millijoules"]
        told = {
            name: np.array([[getattr(device, name) for device in devices] for _, devices in self._readings])
            for name in names
        }
        return {
            "device_percent": float(told["percent"].mean()),
            "device_memory_bytes": float(told["memory_bytes"].sum(axis=1).mean()),
            "device_mhz": float(told["mhz"].mean()),
            "device_celsius": float(told["celsius"].max(axis=1).mean()),
        }


class Monitor:
    """Measures every `seconds` in a thread, and hands rows to `post`, which must not wait.

    Arguments:
        sampler: of this node.
        clock: seconds since core start on rank 0's clock.
        seconds: from one measurement to the next.
        every: measurements that a row stands for, see `stride`.
        delay: time of the first measurement, which differs between nodes so that their rows come evenly.
        post: takes the rows, from the thread, and the last one from who calls `finish`.
    """

    def __init__(
        self,
        sampler: Sampler,
        clock: Callable[[], float],
        seconds: float,
        every: int,
        delay: float,
        post: Callable[[dict[str, float]], object],
    ) -> None:
        self._sampler, self._clock, self._seconds, self._every, self._post = (
            sampler,
            clock,
            seconds,
            every,
            post,
        )
        self._due, self._left = delay, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="monitor", daemon=True)

    def start(self) -> None:
        """Begin at core start."""
        self._sampler.begin()
        self._thread.start()

    def finish(self) -> None:
        """End the thread, measure a last time, and post the last row."""
        self._over.set()
        self._thread.join()
        self._sampler.measure(self._clock())
        self._post(self._sampler.row())

    def _serve(self) -> None:
        while not self._over.wait(max(0.0, self._due - self._clock())):
            self._sampler.measure(self._clock())
            self._left -= 1
            if self._left == 0:
                self._post(self._sampler.row())
                self._left = self._every

            # What was missed, as the node was too busy or suspended, is not made up for.
            now = self._clock()
            self._due += self._seconds * max(1, math.ceil((now - self._due) / self._seconds))
