# SPDX-License-Identifier: Apache-2.0
"""MPI's files in shared memory, which no rank removes after an abort."""

from __future__ import annotations

import os

#: How their names in /dev/shm begin: of MPICH, Open MPI, UCX, PSM and NCCL.
_SEGMENTS = (
    "mpich_",
    "sm_segment.",
    "vader_segment.",
    "osc_",
    "open_mpi.",
    "ucx_",
    "psm2_",
    "psm3_",
    "nccl-",
)


def remove_segments(maps: str = "/proc/self/maps", folder: str = "/dev/shm/") -> None:
    """Remove MPI's files in shared memory that this process has mapped: after an abort, no rank does it."""
    try:
        with open(maps, encoding="utf-8", errors="surrogateescape") as file:
            paths = {line.split(None, 5)[5].rstrip("\n") for line in file if folder in line}
    except (OSError, IndexError):
        return
    for path in paths:
        if path.startswith(tuple(folder + name for name in _SEGMENTS)):
            try:
                os.unlink(path)
            except OSError:
                continue  # another rank of this host has removed it
