# SPDX-License-Identifier: Apache-2.0
"""Print this rank's CPUs and arguments as a JSON line; with WAIT in the environment, wait then for that time.

Leave with the exit code EXIT, rank by rank, as ranks of a run that ends do not leave in the same moment.
"""

from __future__ import annotations

import json
import os
import sys
import time

from mpi4py import MPI

world = MPI.COMM_WORLD
rank = world.rank
row = {"rank": rank, "size": world.size, "cpus": sorted(os.sched_getaffinity(0)), "argv": sys.argv[1:]}
world.Barrier()
os.write(1, (json.dumps(row) + "\n").encode())
time.sleep(float(os.environ.get("WAIT", "0")))
if rank == 1 and "DIE" in os.environ:
    os.kill(os.getpid(), 9)
world.Barrier()
MPI.Finalize()
time.sleep(0.3 * rank)
os._exit(int(os.environ.get("EXIT", "0")))
