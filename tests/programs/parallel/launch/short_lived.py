# SPDX-License-Identifier: Apache-2.0
"""Start agreements on arrays that nothing else keeps, use as much memory again, and complete them late.
Argument: folder."""

import sys
import time

import numpy as np

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import start_agreement, wait
from aiperf_mpi.parallel.launch.mpi import MPI
from tests.helpers.parallel.rows import report

folder, lowest = sys.argv[1], list[float]()
with job.job() as world:
    for turn in range(200):
        started = start_agreement(world, np.array([1.0 + world.rank]), MPI.MIN)
        others = [np.zeros(1) for _ in range(64)]
        if world.rank == turn % world.size:
            time.sleep(0.001)
        wait(started.request)
        lowest.append(float(started.agreed[0]) + float(sum(other[0] for other in others)))
    report(folder, world.rank, lowest=lowest)
    job.agreed_exit(world, 0)
