# SPDX-License-Identifier: Apache-2.0
"""What a host and this process do now: processors, memory, disks, network, fabric; what was moved since it
was first asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil

#: InfiniBand's counters of data count words of four bytes.
_FABRIC_WORD = 4

_FABRIC = Path("/sys/class/infiniband")


@dataclass(frozen=True, slots=True)
class HostReading:
    """One host now: seconds of all CPUs, busy and in all; CPU seconds and clock of this process; bytes of
    memory in use by the host and this process; bytes moved by disks, network and fabric since the first
    reading (NaN: not told)."""

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


#: What a host that cannot be asked has told.
UNREAD = HostReading(*(math.nan for _ in fields(HostReading)))


class Moved:
    """What counters of several names have counted since each was first seen. One that went back, as its
    device was taken away or began anew, has counted nothing meanwhile: the sum only grows."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._sum = 0

    def add(self, counters: Mapping[str, int]) -> float:
        """The sum with a further reading; NaN without a counter."""
        self._sum += sum(max(value - self._last.get(name, value), 0) for name, value in counters.items())
        self._last.update(counters)
        return float(self._sum) if counters else math.nan


class Host:
    """Reads the host that this process runs on; `fabric` is where the kernel shows InfiniBand devices."""

    def __init__(self, fabric: Path = _FABRIC) -> None:
        self._process = psutil.Process()
        self._moved = {name: Moved() for name in ("read", "write", "net", "fabric")}
        ports = sorted(fabric.glob("*/ports/*/counters"))
        self._counters = [port / name for port in ports for name in ("port_xmit_data", "port_rcv_data")]

    def read(self) -> HostReading:
        """What the host does now; raises OSError, NotImplementedError or psutil.Error where processors or
        memory cannot be read. Disks or interfaces that cannot be read are NaN."""
        times = psutil.cpu_times()
        waiting = times.idle + getattr(times, "iowait", 0.0)
        # Guests' time is counted in user's and nice's already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        memory, own = psutil.virtual_memory(), self._process
        disks, cards = _told(psutil.disk_io_counters), _told(lambda: psutil.net_io_counters(pernic=True))
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
        """Bytes sent and received by each port; empty without a port, or where one cannot be read."""
        try:
            return {str(path): int(path.read_text()) * _FABRIC_WORD for path in self._counters}
        except (OSError, ValueError):
            return {}


def _told(ask: Callable[[], Any]) -> Any:
    """What psutil answers; None where the host does not show it, as in a container."""
    try:
        return ask()
    except (OSError, NotImplementedError, psutil.Error):
        return None
