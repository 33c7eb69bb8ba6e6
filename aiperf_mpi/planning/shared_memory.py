# SPDX-License-Identifier: Apache-2.0
"""The shared memory that the windows of a run take on a host, and whether it is there."""

from __future__ import annotations

import os

from aiperf_mpi.config import Config
from aiperf_mpi.launchers import local_size
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.printable import counted
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

#: MiB that a remedy asks for in addition to MPI's own (one for each rank, and one): enough for the windows of
#: 2^17 records; and bytes with which a smaller history would fit.
_ROOM_MIB, _LEAST_BYTES = 64, 2 * 2**20


def mounting(folder: str = FOLDER) -> str:
    """Return what mounts shared memory on a host that has none."""
    return f"mkdir -p {folder} && mount -t tmpfs -o mode=1777 tmpfs {folder}"


def coordinator_bytes(config: Config) -> int:
    """Return the bytes of the windows on rank 0's host: history and claims."""
    capacity = config.parallel.history_capacity
    return history_bytes(capacity) + claims_bytes(CLAIMS_PER_RECORD * capacity)


def node_bytes(config: Config, queues: int, group_size: int) -> int:
    """Return the bytes of the windows on a node: its mirror, and `queues` queues of `group_size` ranks."""
    capacity, depth = config.parallel.history_capacity, config.search.queue_depth
    return mirror_bytes(capacity) + queues * queue_bytes(depth, group_size)


def judge(need: int, folder: str = FOLDER, *, ranks: int = 0, begun: bool = True) -> Finding:
    """Return whether the windows of this host, `need` bytes, fit into its shared memory.

    A window that does not fit would end a rank by SIGBUS at the first touch, perhaps hours later.

    Arguments:
        need: bytes of the windows.
        folder: where the system keeps shared memory.
        ranks: of this host; 0 for those that the launcher tells.
        begun: whether MPI has taken its own part already.
    """
    if not os.path.isdir(folder):
        text = f"this system has no {folder}: MPICH does not start several ranks on such a host"
        return Finding("warn", _SUBJECT, text, f"mount it: {mounting(folder)}")
    try:
        stat = os.statvfs(folder)
    except OSError as error:
        return Finding("warn", _SUBJECT, f"{folder}: {error.strerror}", f"mount a tmpfs on {folder}")
    ranks = ranks or local_size()
    own, mib = ranks + 1, -(-need // 2**20)
    free, used = stat.f_bavail * stat.f_frsize, (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    if need + (0 if begun else own * 2**20) > free:
        text = f"{folder} has {free // 2**20} MiB free, but the windows take {mib} MiB"
        if not begun:
            text = (
                f"{folder} has {free // 2**20} MiB free, but MPI takes {own} MiB for "
                f"{counted(ranks, 'rank')}, and the windows take {mib} MiB"
            )
        # With what others have there, as much as the refusal before MPI's initialisation asks for.
        size = max(_ROOM_MIB, mib + _ROOM_MIB // 4) + own + max(0, used // 2**20 - own * begun)
        remedy = (
            f"enlarge it (mount -o remount,size={size}m {folder}; in a container: docker run "
            f"--shm-size={size}m)"
        )
        if free - (0 if begun else own * 2**20) > _LEAST_BYTES:
            remedy += ", or choose a smaller --set parallel.history_capacity="
        return Finding("fail", _SUBJECT, text, remedy)
    if stat.f_flag & os.ST_RDONLY:
        remedy = f"mount it for writing (mount -o remount,rw {folder})"
        return Finding("fail", _SUBJECT, f"{folder} is mounted read-only", remedy)
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = f"give {folder} the mode 1777 (chmod 1777 {folder})"
        return Finding("fail", _SUBJECT, f"{folder}: this user may not write there", remedy)
    return Finding("ok", _SUBJECT, f"{folder} has {free // 2**20} MiB free for {mib} MiB of windows")
