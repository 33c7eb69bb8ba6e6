# SPDX-License-Identifier: Apache-2.0
"""The memory that this process may still use."""

from __future__ import annotations

from pathlib import Path

import psutil

#: Memory limit and use of the control group that containers and batch systems put a job in (version 2 and
#: version 1).
_CGROUP_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def available_bytes() -> int:
    """Bytes of memory left to this process: what the host has free, and less where a control group allows
    less."""
    available = int(psutil.virtual_memory().available)
    for limit_file, used_file in _CGROUP_FILES:
        try:
            limit, used = limit_file.read_text().strip(), used_file.read_text().strip()
        except OSError:
            continue  # no such control group on this host
        if limit.isdigit() and used.isdigit():
            available = min(available, max(0, int(limit) - int(used)))
    return available
