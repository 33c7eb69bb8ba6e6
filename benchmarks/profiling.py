# SPDX-License-Identifier: Apache-2.0
"""Summarise a profile: the times of a compiled program's operations in a trace."""

from __future__ import annotations

import re
from typing import Any

#: Rows of the tables.
ROWS = 40

#: `%name = ... metadata={op_name="jit(step)/.../primitive" ...}` of a compiled program's text.
_ORIGIN = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?metadata=\{[^}]*?op_name=\"([^\"]*)\"", re.MULTILINE)


def device_events(data: Any) -> list[tuple[str, float]]:
    """Return the operation and its nanoseconds for each execution on the device.

    On an accelerator, only lines of streams are read, because other lines show the same time again.
    """
    planes = [plane for plane in data.planes if plane.name.startswith("/device:")]
    streams = [line for plane in planes for line in plane.lines if line.name.startswith("Stream")]
    threads = [line for plane in data.planes if plane.name.startswith("/host:CPU") for line in plane.lines]
    events = []
    for line in streams or threads:
        for event in line.events:
            # All events on a stream belong to the program, even a kernel or copy without the name of an
            # operation.
            name = dict(event.stats).get("hlo_op") or (event.name if streams else "")
            if name:
                events.append((str(name), float(event.duration_ns)))
    return events


def by_operation(events: list[tuple[str, float]], program: str) -> dict[str, Any]:
    """Sum the events by operation, the largest first, and by primitive."""
    origins = dict(_ORIGIN.findall(program))
    sums: dict[str, list[float]] = {}
    kinds: dict[str, float] = {}
    for name, duration in events:
        sums.setdefault(name, []).append(duration)
        origin = origins.get(name, "")
        part = "backward" if "transpose(" in origin else "forward or update"
        kind = f"{origin.rsplit('/', 1)[-1] or 'unknown'}, {part}"
        kinds[kind] = kinds.get(kind, 0.0) + duration
    total = sum(map(sum, sums.values()))
    rows = sorted(sums.items(), key=lambda item: -sum(item[1]))
    return {
        "total_ms": total / 1e6,
        "operations": [
            {
                "operation": name,
                "origin": "/".join(origins.get(name, "").split("/")[-2:]),
                "times": len(times),
                "ms": sum(times) / 1e6,
                "share": sum(times) / total,
            }
            for name, times in rows[:ROWS]
        ],
        "kinds": [
            {"kind": kind, "ms": time / 1e6, "share": time / total}
            for kind, time in sorted(kinds.items(), key=lambda item: -item[1])[:ROWS]
        ],
    }
