# SPDX-License-Identifier: Apache-2.0
"""How a command refuses what it is asked: one line on standard error, exit code 2."""

from __future__ import annotations

import sys
import time

from aiperf_mpi.exits import EXIT_USAGE
from aiperf_mpi.launchers import SILENT_SECONDS


def refuse(error: Exception, launched: bool = False) -> int:
    """One line on standard error; returns the exit code of a usage error.

    A `launched` command, `run`, says it from one process of the job alone; the others run where there is no
    MPI.
    """
    silent = False
    if launched:
        from aiperf_mpi.parallel.launch.launcher import detect

        silent = not detect().speaks

    # The launcher kills the other ranks once one has left, so the silent ones leave last.
    if silent:
        time.sleep(SILENT_SECONDS)
    else:
        print(f"aiperf_mpi: {error}", file=sys.stderr, flush=True)
    return EXIT_USAGE
