# SPDX-License-Identifier: Apache-2.0
"""What a host and this process do now: processors, memory, disks, network, fabric; counters since the host started."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

#: InfiniBand's counters of data count words of four bytes.
_FABRIC_WORD = 4

_FABRIC = Path("/sys/class/infiniband")


@dataclass(frozen=True, slots=True)
class HostReading:
    """One host now: seconds of all CPUs, busy and in all; CPU seconds and clock of this process; bytes of memory in use
    by the host and this process; bytes moved by disks, network and fabric (NaN: not told)."""

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


class Host:
    """Reads the host that this process runs on; `fabric` is where the kernel shows InfiniBand devices."""

    def __init__(self, fabric: Path = _FABRIC) -> None:
        self._process = psutil.Process()
        ports = sorted(fabric.glob("*/ports/*/counters"))
        self._counters = [port / name for port in ports for name in ("port_xmit_data", "port_rcv_data")]

    def read(self) -> HostReading:
        """What the host does now."""
        times = psutil.cpu_times()
        waiting = times.idle + getattr(times, "iowait", 0.0)
        # Guests' time is counted in user's and nice's already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        memory, own = psutil.virtual_memory(), self._process
        disks = psutil.disk_io_counters()
        read, written = (math.nan, math.nan) if disks is None else (float(disks.read_bytes), float(disks.write_bytes))
        cards = psutil.net_io_counters(pernic=True)
        return HostReading(
            busy_seconds=total - waiting,
            cpu_seconds=total,
            process_seconds=sum(own.cpu_times()[:2]),
            at=time.monotonic(),
            memory_bytes=float(memory.total - memory.available),
            process_bytes=float(own.memory_info().rss),
            read_bytes=read,
            write_bytes=written,
            net_bytes=float(sum(c.bytes_sent + c.bytes_recv for name, c in cards.items() if name != "lo")),
            fabric_bytes=self._fabric_bytes(),
        )

    def _fabric_bytes(self) -> float:
        """Bytes sent and received by all ports; NaN without a port, or where one cannot be read."""
        try:
            words = [int(path.read_text()) for path in self._counters]
        except (OSError, ValueError):
            return math.nan
        return float(sum(words) * _FABRIC_WORD) if words else math.nan
