# SPDX-License-Identifier: Apache-2.0
"""Read the memory that this process may still use."""

from __future__ import annotations

from pathlib import Path

import psutil

#: Files with the memory limit and the memory use of a job's control group (version 2 and version 1), which
#: containers and batch systems set.
_CGROUP_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def available_bytes() -> int:
    """Return the bytes left to this process: the host's free memory, or less under a control group."""
    available = int(psutil.virtual_memory().available)
    for limit_file, used_file in _CGROUP_FILES:
        try:
            limit, used = limit_file.read_text().strip(), used_file.read_text().strip()
        except OSError:
            continue  # no such control group on this host
        if limit.isdigit() and used.isdigit():
            available = min(available, max(0, int(limit) - int(used)))
    return available
