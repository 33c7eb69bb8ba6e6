# SPDX-License-Identifier: Apache-2.0
"""Sample the use and power of a node during the run, in a thread that makes no MPI call.

A row summarises a window of one or more measurements. Its width is the same for any number of devices, so
that its rank sends it to rank 0 like any other row. Energy is integrated here, over every measurement.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from aiperf_mpi.machine.accelerators import Accelerators, DeviceReading
from aiperf_mpi.machine.energy import EnergyCounter, Integral
from aiperf_mpi.machine.host import UNREAD, Host, HostReading
from aiperf_mpi.machine.rapl import MICROJOULE, Zone
from aiperf_mpi.probe import reason

#: Largest number of rows of a run, about 160 MB of its result; above it, a row has several measurements.
MAX_ROWS = 2**20

_MILLIJOULE = 1e-3


@dataclass(frozen=True)
class Probe:
    """The readable parts of a node: its host, its accelerators and its processors' energy counters.

    `expected` is the number of accelerators. `power` is true if this node measures power: of several nodes on
    one host, only the first does.
    """

    host: Host
    accelerators: Accelerators
    expected: int
    zones: tuple[Zone, ...]
    power: bool = True


def stride(n_nodes: int, time_limit: float, seconds: float) -> int:
    """Return the measurements in a row, so that `n_nodes` make at most MAX_ROWS rows in `time_limit` s."""
    return max(1, math.ceil(n_nodes * time_limit / seconds / MAX_ROWS))


class PowerMeter:
    """Energy (J) of a node's accelerators, and of all its measured parts, since the first measurement.

    The first measurement decides how each accelerator is read: by its energy counter, else by its power.
    The energy is that of all accelerators, or NaN if one of them reports neither; the node's energy is then
    NaN too. RAPL's energy is added if it can be read at the start; if that fails later, the sum is NaN. A
    counter that went back ends the measurement of its kind, and `warn` reports it.
    """

    def __init__(self, probe: Probe, warn: Callable[[str], None]) -> None:
        self._probe, self._warn = probe, warn
        self._devices: list[EnergyCounter | Integral] = []
        self._packages = [EnergyCounter(MICROJOULE, zone.span) for zone in probe.zones]
        self._broken: set[str] = set()

    def read(self, t: float, devices: Sequence[DeviceReading]) -> tuple[float, float]:
        """Return the energy (J) of the accelerators and of all parts at time `t` (s)."""
        if not self._probe.power:
            return math.nan, math.nan
        of_devices = self._of("accelerators", lambda: self._read_devices(t, devices))
        of_packages = self._of("RAPL", self._read_packages)
        if self._probe.expected:
            return of_devices, of_devices + (of_packages if self._packages else 0.0)
        return math.nan, of_packages

    def _of(self, kind: str, read: Callable[[], float]) -> float:
        """Read the energy of one kind of counter; after its first failure, return NaN."""
        if kind in self._broken:
            return math.nan
        try:
            return read()
        except (OSError, ValueError) as error:
            self._broken.add(kind)
            self._warn(f"energy of {kind} is not measured any more: {error}")
            return math.nan

    def _read_devices(self, t: float, devices: Sequence[DeviceReading]) -> float:
        """Add the readings of all accelerators. Raises ValueError if one of them cannot be measured."""
        if not devices or len(devices) != self._probe.expected:
            return math.nan
        if not self._devices:
            # The first reading decides how a device is read to the end; all count from core start.
            silent = [n for n, d in enumerate(devices) if d.millijoules is None and math.isnan(d.watts)]
            if silent:
                raise ValueError(
                    f"accelerators {silent} of the node report neither energy nor power at core start"
                )
            self._devices = [
                Integral() if d.millijoules is None else EnergyCounter(_MILLIJOULE) for d in devices
            ]
        total = 0.0
        for device, meter in zip(devices, self._devices, strict=True):
            if isinstance(meter, EnergyCounter):
                total += meter.add(device.millijoules) if device.millijoules is not None else math.nan
            else:
                total += math.nan if math.isnan(device.watts) else meter.add(t, device.watts)
        return total

    def _read_packages(self) -> float:
        """Add the readings of the processors' energy counters; NaN without one."""
        if not self._packages:
            return math.nan
        return sum(
            meter.add(zone.read()) for meter, zone in zip(self._packages, self._probe.zones, strict=True)
        )


class Sampler:
    """Measure a node, and make a row of the measurements since the last row; without a thread or a clock.

    Arguments:
        node: index of the node.
        probe: readable parts of the node.
        warn: function for a message about a value that can no longer be measured.
    """

    def __init__(self, node: int, probe: Probe, warn: Callable[[str], None]) -> None:
        self._node, self._probe, self._warn = node, probe, warn
        self._unread = self._unread_devices = False
        self._count = probe.expected
        self._meter = PowerMeter(probe, warn)
        self._window = 0
        self._begun: tuple[float, HostReading, float, float] | None = None
        self._readings: list[tuple[HostReading, list[DeviceReading]]] = []
        self._end: tuple[float, float, float] = (0.0, math.nan, math.nan)
        self._cost = 0.0

    def begin(self, t: float = 0.0) -> None:
        """Take the first reading at time `t`, 0 unless a run goes on; later measurements count from here."""
        host, devices = self._host(), self._devices()
        of_devices, energy = self._meter.read(t, devices)
        self._begun = t, host, of_devices, energy

    def measure(self, t: float) -> None:
        """Measure now; `t` is the time in seconds since core start."""
        spent = time.thread_time()
        devices = self._devices()
        self._readings.append((self._host(), devices))
        self._end = (t, *self._meter.read(t, devices))
        self._cost += time.thread_time() - spent

    def _host(self) -> HostReading:
        """Read the load of the host; if that fails, warn once and return NaN values from then on."""
        if self._unread:
            return UNREAD
        try:
            return self._probe.host.read()
        except Exception as error:
            self._unread = True
            self._warn(f"use of the host is not measured any more: {reason(error)}")
            return UNREAD

    def _devices(self) -> list[DeviceReading]:
        """Read the accelerators; if that fails, warn once and return NaN values from then on."""
        if not self._unread_devices:
            try:
                readings = self._probe.accelerators.read()
                self._count = len(readings)
                return readings
            except Exception as error:
                self._unread_devices = True
                self._warn(f"use of the accelerators is not measured any more: {reason(error)}")
        return [DeviceReading()] * self._count

    def row(self) -> dict[str, float]:
        """Return the columns of a sample, by name, for the measurements since the last row.

        A node without accelerators leaves their columns out. Raises RuntimeError without a measurement.
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
        """Return the accelerators' columns: means over the measurements; NaN if one value is missing."""
        if not self._readings[-1][1]:
            return {}
        names = [item.name for item in fields(DeviceReading) if item.name != "millijoules"]
        readings = {
            name: np.array([[getattr(device, name) for device in devices] for _, devices in self._readings])
            for name in names
        }
        return {
            "device_percent": float(readings["percent"].mean()),
            "device_memory_bytes": float(readings["memory_bytes"].sum(axis=1).mean()),
            "device_mhz": float(readings["mhz"].mean()),
            "device_celsius": float(readings["celsius"].max(axis=1).mean()),
        }


class Monitor:
    """Measure every `seconds` in a thread, and pass each row to `post`, which must not block.

    Arguments:
        sampler: sampler of this node.
        clock: function that returns the seconds since core start on rank 0's clock.
        seconds: time between two measurements in seconds.
        every: number of measurements in a row, see :func:`stride`.
        delay: seconds until the first measurement; it differs between nodes, to spread their rows.
        post: function for a row; the thread calls it, and `finish` calls it for the last row.
        begun: core second at which the monitor starts, 0 unless a run goes on.
    """

    def __init__(
        self,
        sampler: Sampler,
        clock: Callable[[], float],
        seconds: float,
        every: int,
        delay: float,
        post: Callable[[dict[str, float]], object],
        begun: float = 0.0,
    ) -> None:
        self._sampler, self._clock, self._seconds, self._every, self._post = (
            sampler,
            clock,
            seconds,
            every,
            post,
        )
        self._begun, self._due, self._left = begun, begun + delay, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="monitor", daemon=True)

    def start(self) -> None:
        """Take the first reading and start the thread; call it at core start."""
        self._sampler.begin(self._begun)
        self._thread.start()

    def finish(self) -> None:
        """End the thread, measure once more, and post the last row."""
        self._over.set()
        self._thread.join()
        self._sampler.measure(self._clock())
        self._post(self._sampler.row())

    def _serve(self) -> None:
        """Measure and post rows until `finish`; the thread's function."""
        while not self._over.wait(max(0.0, self._due - self._clock())):
            self._sampler.measure(self._clock())
            self._left -= 1
            if self._left == 0:
                self._post(self._sampler.row())
                self._left = self._every

            # Measurements missed while the node was busy or suspended are skipped.
            now = self._clock()
            self._due += self._seconds * max(1, math.ceil((now - self._due) / self._seconds))
