# SPDX-License-Identifier: Apache-2.0
"""How a command refuses a request: one line on standard error, exit code 2."""

from __future__ import annotations

from aiperf_mpi.descriptors import tell
from aiperf_mpi.exits import EXIT_USAGE


def refuse(error: Exception) -> int:
    """Print the error as one line on standard error, and return the exit code of a usage error."""
    tell(f"aiperf_mpi: {error}")
    return EXIT_USAGE
