# SPDX-License-Identifier: Apache-2.0
"""Run the checks of tests/helpers/parallel/contract.py over windows, on the last rank of COMM_WORLD. Checks
that abandon slots run on rank 0."""

import sys
import traceback

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared.claims import WindowClaims
from aiperf_mpi.parallel.shared.history import WindowHistory
from tests.helpers.parallel import contract
from tests.helpers.parallel.rows import report

world = job.start_mpi()
node = world.Split(min(world.rank, 1), world.rank)
results = {}


def run(name, check, make, rank):
    log = make()
    if world.rank == rank:
        try:
            check(log)
            results[name] = "passed"
        except Exception:
            results[name] = traceback.format_exc()
    wait(world.Ibarrier())
    log.close()


for name, check in {**contract.HISTORY_CHECKS, **contract.HOST_CHECKS}.items():
    rank = 0 if name in contract.HOST_CHECKS else world.size - 1
    run(name, check, lambda: WindowHistory(world, node if world.rank else None, contract.CAPACITY), rank)
for name, check in contract.CLAIM_CHECKS.items():
    run(name, check, lambda: WindowClaims(world, contract.CAPACITY), world.size - 1)
report(sys.argv[1], world.rank, results=results)
