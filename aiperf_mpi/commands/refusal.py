# SPDX-License-Identifier: Apache-2.0
"""How a command refuses a request: one line on standard error, exit code 2."""

from __future__ import annotations

import sys

from aiperf_mpi.exits import EXIT_USAGE
from aiperf_mpi.printable import one_line


def refuse(error: Exception) -> int:
    """Print the error as one line on standard error, and return the exit code of a usage error."""
    print(f"aiperf_mpi: {one_line(str(error))}", file=sys.stderr, flush=True)
    return EXIT_USAGE
