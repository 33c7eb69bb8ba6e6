# SPDX-License-Identifier: Apache-2.0
"""At the time limit rank 1 waits for rank 2, which comes only after rank 0 goes on without it. Report what
each has seen, and whether rank 2 could still join rank 1. Argument: folder."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import start_agreement
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.run import reached_limit, wait_for_last_step
from aiperf_mpi.parallel.shared.context import Context, owns_best
from aiperf_mpi.parallel.shared.messages import Kind, Messages, Reason
from aiperf_mpi.phases import PhaseTimer
from tests.helpers.parallel.rows import report

folder, values = sys.argv[1], dict[str, Any]()
with job.job() as world:
    ends, workers = Messages(world), world.Split(world.rank == 0)
    config: Any = SimpleNamespace(parallel=SimpleNamespace(poll_seconds=0.01))
    ranks: Any = SimpleNamespace(workers=workers, rank=world.rank)
    windows: Any = SimpleNamespace(messages=ends)
    clock: Any = None
    context = Context(config, ranks, windows, PhaseTimer(), time.monotonic(), clock, 1)
    if world.rank == 0:
        ends.stop(Reason.LIMIT, 1.0)
        rows = ends.poll()
        while not rows:  # rank 1 has ended its work
            time.sleep(0.01)
            rows += ends.poll()
        time.sleep(0.5)
        ends.stop(Reason.ALONE, 1.0)
        while sum(bool(row.data) for row in rows) < world.size - 1:
            time.sleep(0.01)
            rows += ends.poll()
    elif world.rank == 1:
        values["limit"] = reached_limit(context)
        values["owns"] = owns_best(context, 0.5, 3)
    else:
        while (stop := ends.stop_requested()) is None or stop.reason is not Reason.ALONE:
            time.sleep(0.01)
        values["limit"] = reached_limit(context)
        wait_for_last_step(context)
        # Had it joined in another collective operation, this one would never match that of rank 1.
        lowest = start_agreement(workers, np.array([0.25]), MPI.MIN)
        limit = time.monotonic() + 5
        while not (joined := lowest.request.Test()) and time.monotonic() < limit:
            time.sleep(0.01)
        values |= {"joined": joined, "lowest": float(lowest.agreed[0])}
    if world.rank:
        ends.send(Kind.RANK, bytes(8))
    ends.close()
    report(folder, world.rank, **values)
    job.agreed_exit(world, 0)
