# SPDX-License-Identifier: Apache-2.0
"""Read the load of a host and of this process: processors, memory, disks, network and fabric."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil

from aiperf_mpi.probe import probe

#: InfiniBand's data counters count units of four bytes.
_FABRIC_UNIT = 4

_FABRIC = Path("/sys/class/infiniband")


@dataclass(frozen=True, slots=True)
class HostReading:
    """The load of one host at one time; NaN for a value that the host does not report.

    Attributes:
        busy_seconds, cpu_seconds: seconds that all CPUs were busy, and all their seconds.
        process_seconds, at: CPU seconds of this process, and the monotonic clock in seconds.
        memory_bytes, process_bytes: memory in use by the host, and by this process.
        read_bytes, write_bytes, net_bytes, fabric_bytes: bytes moved by disks, network and fabric since the
            first reading.
    """

    busy_seconds: float
    cpu_seconds: float
    process_seconds: float
    at: float
    memory_bytes: float
    process_bytes: float
    read_bytes: float
    write_bytes: float
    net_bytes: float
    fabric_bytes: float


#: The reading of a host that cannot be read.
UNREAD = HostReading(*(math.nan for _ in fields(HostReading)))


class Moved:
    """Sum of the increases of several named counters since the first reading of each.

    A counter that went back, because its device was removed or restarted, adds nothing: the sum never falls.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._sum = 0

    def add(self, counters: Mapping[str, int]) -> float:
        """Add a reading and return the sum; NaN without a counter."""
        self._sum += sum(max(value - self._last.get(name, value), 0) for name, value in counters.items())
        self._last.update(counters)
        return float(self._sum) if counters else math.nan


class Host:
    """Reads the host that this process runs on; `fabric` is where the kernel shows InfiniBand devices."""

    def __init__(self, fabric: Path = _FABRIC) -> None:
        self._moved = {name: Moved() for name in ("read", "write", "net", "fabric")}
        ports = probe("the fabric's counters", lambda: sorted(fabric.glob("*/ports/*/counters")))
        ports = ports if isinstance(ports, list) else []
        self._counters = [port / name for port in ports for name in ("port_xmit_data", "port_rcv_data")]

    def read(self) -> HostReading:
        """Read the load of the host now; disks or interfaces that cannot be read are NaN.

        Raises OSError, RuntimeError, ValueError or psutil.Error if processors or memory cannot be read.
        """
        times = psutil.cpu_times()
        waiting = times.idle + getattr(times, "iowait", 0.0)
        # The user and nice times already contain the guests' times.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        memory, own = psutil.virtual_memory(), psutil.Process()
        disks = _counters(psutil.disk_io_counters)
        cards = _counters(lambda: psutil.net_io_counters(pernic=True))
        moved = {
            "read": {} if disks is None else {"": disks.read_bytes},
            "write": {} if disks is None else {"": disks.write_bytes},
            "net": {name: c.bytes_sent + c.bytes_recv for name, c in (cards or {}).items() if name != "lo"},
            "fabric": self._fabric_bytes(),
        }
        amounts = {name: self._moved[name].add(counters) for name, counters in moved.items()}
        return HostReading(
            busy_seconds=total - waiting,
            cpu_seconds=total,
            process_seconds=sum(own.cpu_times()[:2]),
            at=time.monotonic(),
            memory_bytes=float(memory.total - memory.available),
            process_bytes=float(own.memory_info().rss),
            read_bytes=amounts["read"],
            write_bytes=amounts["write"],
            net_bytes=amounts["net"],
            fabric_bytes=amounts["fabric"],
        )

    def _fabric_bytes(self) -> dict[str, int]:
        """Return the bytes sent and received by each port; empty without a port, or if one cannot be read."""
        try:
            return {str(path): int(path.read_text()) * _FABRIC_UNIT for path in self._counters}
        except (OSError, ValueError):
            return {}


def _counters(read: Callable[[], Any]) -> Any:
    """Return counters of psutil; None if the host does not show them, as in a container."""
    try:
        return read()
    except (OSError, NotImplementedError, RuntimeError, ValueError, psutil.Error):
        return None
