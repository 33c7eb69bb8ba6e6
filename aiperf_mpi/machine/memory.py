# SPDX-License-Identifier: Apache-2.0
"""Read the memory that this process may still use: of the host, its control groups, and its own limits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from aiperf_mpi.machine.cgroups import groups_with_limit

try:
    import resource
except ImportError:  # pragma: no cover: no such module on Windows
    resource = None  # type: ignore[assignment]

#: Name of the level that is the host itself.
HOST = "the host"


@dataclass(frozen=True, slots=True)
class Level:
    """A limit on memory, and what is left of it in bytes.

    Attributes:
        name: the host, the folder of a control group, or the limit of this process.
        limit, free: bytes in all, and bytes that this process may still use.
        shared: whether the limit holds for several processes together.
    """

    name: str
    limit: int
    free: int
    shared: bool = True


def levels(root: Path = Path("/")) -> tuple[Level, ...]:
    """Return every limit on this process's memory: the host, its control groups, its own.

    Files of control groups are read below `root`.
    """
    memory = psutil.virtual_memory()
    found = [Level(HOST, int(memory.total), int(memory.available))]
    found += [Level(group.name, group.limit, group.free) for group in groups_with_limit(root)]
    return (*found, *_own())


def _own() -> list[Level]:
    """Return the limits of this process alone: its address space and its data (ulimit -v, ulimit -d)."""
    if resource is None:
        return []
    sizes = dict(line.split(":", 1) for line in _status() if ":" in line)
    found = []
    for name, what, size in (
        ("ulimit -v", resource.RLIMIT_AS, "VmSize"),
        ("ulimit -d", resource.RLIMIT_DATA, "VmData"),
    ):
        limit = resource.getrlimit(what)[0]
        if limit != resource.RLIM_INFINITY:
            used = sizes.get(size, "0 kB").split()[0]
            free = limit - 1024 * (int(used) if used.isdigit() else 0)
            found.append(Level(name, limit, max(0, free), shared=False))
    return found


def _status() -> list[str]:
    try:
        return Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    except OSError:
        return []


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes left to this process, at the level that leaves the least."""
    return min(level.free for level in levels(root))
