# SPDX-License-Identifier: Apache-2.0
"""Compare the software of all ranks, which a run needs alike."""

from __future__ import annotations

from aiperf_mpi.parallel.launch.kinds import kinds
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.site import likeness


def judge_ranks(world: MPI.Intracomm) -> tuple[Finding, ...]:
    """Return on rank 0 what differs in the versions of the ranks; () elsewhere. Collective."""
    library = " ".join(MPI.Get_library_version().replace("\0", "").split())
    different = kinds(world, likeness.identity(library[:200]))
    return likeness.judge(different) if different else ()
