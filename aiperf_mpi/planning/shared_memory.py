# SPDX-License-Identifier: Apache-2.0
"""The shared memory that the windows of a run take on a host, and whether it is there."""

from __future__ import annotations

import os

from aiperf_mpi.config import Config
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.trials.footprint import (
    CLAIMS_PER_RECORD,
    claims_bytes,
    history_bytes,
    mirror_bytes,
    queue_bytes,
)

#: Where the system keeps shared memory.
FOLDER = "/dev/shm"

_SUBJECT = "shared memory"


def coordinator_bytes(config: Config) -> int:
    """Return the bytes of the windows on rank 0's host: history and claims."""
    capacity = config.parallel.history_capacity
    return history_bytes(capacity) + claims_bytes(CLAIMS_PER_RECORD * capacity)


def node_bytes(config: Config, queues: int, group_size: int) -> int:
    """Return the bytes of the windows on a node: its mirror, and `queues` queues of `group_size` ranks."""
    capacity, depth = config.parallel.history_capacity, config.search.queue_depth
    return mirror_bytes(capacity) + queues * queue_bytes(depth, group_size)


def judge(need: int, folder: str = FOLDER) -> Finding:
    """Return whether the windows of this host, `need` bytes, fit into its shared memory.

    A window that does not fit would end a rank by SIGBUS at the first touch, perhaps hours later.
    """
    if not os.path.isdir(folder):
        return Finding("ok", _SUBJECT, f"this system has no {folder}: the MPI library chooses another place")
    try:
        stat = os.statvfs(folder)
    except OSError as error:
        return Finding("warn", _SUBJECT, f"{folder}: {error.strerror}", f"mount a tmpfs on {folder}")
    free, mib = stat.f_bavail * stat.f_frsize, -(-need // 2**20)
    if need > free:
        return Finding(
            "fail",
            _SUBJECT,
            f"{folder} has {free / 2**20:.0f} MiB free, but the windows take {mib} MiB",
            f"enlarge it (mount -o remount,size={2 * mib}m {folder}; in a container: docker run "
            f"--shm-size={2 * mib}m), or choose a smaller --set parallel.history_capacity=",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = f"give {folder} the mode 1777 (chmod 1777 {folder})"
        return Finding("fail", _SUBJECT, f"{folder}: this user may not write there", remedy)
    return Finding("ok", _SUBJECT, f"{folder} has {free / 2**20:.0f} MiB free for {mib} MiB of windows")
