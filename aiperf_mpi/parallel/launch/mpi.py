# SPDX-License-Identifier: Apache-2.0
"""The MPI library, imported in one place, so that its absence gives a message instead of a traceback."""

from __future__ import annotations

from aiperf_mpi.parallel.launch.launcher import LaunchError

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    # The wheel of mpi4py contains no MPI; it searches for one at import.
    raise LaunchError(
        f"Python finds no MPI library ({'; '.join(str(error).splitlines())}). Install one with pip install "
        "'aiperf_mpi[mpich]', or on a cluster load its MPI's module and install mpi4py again"
    ) from error

__all__ = ["MPI"]
