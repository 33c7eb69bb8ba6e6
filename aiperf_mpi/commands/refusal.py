# SPDX-License-Identifier: Apache-2.0
"""How a command refuses a request: one line on standard error, exit code 2."""

from __future__ import annotations

import sys
import time

from aiperf_mpi.exits import EXIT_USAGE
from aiperf_mpi.launchers import SILENT_SECONDS


def refuse(error: Exception, launched: bool = False) -> int:
    """Print the error as one line on standard error, and return the exit code of a usage error.

    With `launched` (the command `run`), only one process of the job prints it. All other commands run in a
    single process, without MPI.
    """
    silent = False
    if launched:
        from aiperf_mpi.parallel.launch.launcher import detect

        silent = not detect().speaks

    # The launcher kills the other ranks after one has exited, so the silent ranks exit last.
    if silent:
        time.sleep(SILENT_SECONDS)
    else:
        print(f"aiperf_mpi: {error}", file=sys.stderr, flush=True)
    return EXIT_USAGE
