# SPDX-License-Identifier: Apache-2.0
"""Read what is left of the limits on this process: memory, processes and threads, CPU time.

They are those of the host, of its control groups at every level, and of the process itself (ulimit).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from aiperf_mpi.machine.cgroups import PROCESSES, groups_with_limit

try:
    import resource
except ImportError:  # pragma: no cover: no such module on Windows
    resource = None  # type: ignore[assignment]

#: Name of the level that is the host itself.
HOST = "the host"


@dataclass(frozen=True, slots=True)
class Level:
    """A limit on a resource, and what is left of it: bytes, processes and threads, or seconds.

    Attributes:
        name: the host, the folder of a control group, or the limit of this process.
        limit, free: the whole, and what this process may still use.
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
    found = _of_host()
    found += [Level(group.name, group.limit, group.free) for group in groups_with_limit(root)]
    return (*found, *_own())


def _of_host() -> list[Level]:
    """Return the memory of the host; none where the system does not show it (a container without /proc)."""
    try:
        memory = psutil.virtual_memory()
    except (OSError, ValueError, KeyError, RuntimeError, psutil.Error):
        return []
    return [Level(HOST, int(memory.total), int(memory.available))]


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
    """Return the bytes left to this process, at the level that leaves the least; 2^63 - 1 if none tells."""
    return min((level.free for level in levels(root)), default=2**63 - 1)


# -- processes and threads, CPU time ---------------------------------------------------------------

#: Capabilities that the kernel asks for in place of the limit on a user's processes: CAP_SYS_ADMIN and
#: CAP_SYS_RESOURCE.
_PRIVILEGES = 1 << 21 | 1 << 24


def process_levels(root: Path = Path("/")) -> tuple[Level, ...]:
    """Return every limit on the processes and threads of this process: its control groups, its user's.

    Files of control groups are read below `root`.
    """
    groups = groups_with_limit(root, PROCESSES)
    return (*(Level(group.name, group.limit, group.free) for group in groups), *_of_user())


def _of_user() -> list[Level]:
    """Return the limit on the processes and threads of this user on this host (ulimit -u)."""
    if resource is None or _privileged():
        return []
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    return [Level("ulimit -u", limit, max(0, limit - _threads_of_user()))]


def _privileged() -> bool:
    """Return whether the kernel does not apply the limit on processes: root, outside of a user namespace."""
    try:
        mapped = Path("/proc/self/uid_map").read_text().split()[:2] != ["0", "0"]
    except OSError:
        mapped = False
    if mapped:
        return False
    lines = dict(line.split(":", 1) for line in _status() if ":" in line)
    return os.getuid() == 0 or bool(int(lines.get("CapEff", "0").strip() or "0", 16) & _PRIVILEGES)


def _threads_of_user() -> int:
    """Return the number of threads that this user's processes have on this host; 0 where it is not shown."""
    user, total = os.getuid(), 0
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return 0
    for name in names:
        try:
            status = os.stat(f"/proc/{name}/task")
        except OSError:
            continue  # it has ended, or is hidden
        total += status.st_nlink - 2 if status.st_uid == user else 0
    return total


def threads_now() -> int:
    """Return the threads that this process has and those of the processes that it has started."""
    total = 0
    try:
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.Error):  # it has ended
                total += process.num_threads()
    except (psutil.Error, OSError):
        return max(1, total)
    return total


def cpu_levels() -> tuple[Level, ...]:
    """Return the limit on the CPU seconds of this process (ulimit -t), if it has one."""
    if resource is None:
        return ()
    limit = resource.getrlimit(resource.RLIMIT_CPU)[0]
    if limit == resource.RLIM_INFINITY:
        return ()
    return (Level("ulimit -t", limit, max(0, int(limit - time.process_time())), shared=False),)
