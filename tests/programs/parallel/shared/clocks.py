# SPDX-License-Identifier: Apache-2.0
"""Measure clocks with known offsets: each rank's clock is 1000 s x rank ahead of the host's. Argument:
folder."""

import sys
import time
from dataclasses import replace

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.shared import clock
from tests.helpers.parallel.rows import report

with job.job() as world:
    skew = 1000.0 * world.rank

    def skewed():
        return time.monotonic() + skew

    # Ranks of one host read the same clock, so that the truth is known.
    offset = clock.measure_offset(world, skewed)
    core = clock.core_start(world, offset, skewed)
    world.Barrier()
    origin = world.bcast(core.origin)
    # From an origin in whole seconds 2.5 s are exact; from another one their sum is rounded.
    whole = replace(core, origin=float(round(core.origin)))
    report(
        sys.argv[1],
        world.rank,
        offset=offset.seconds,
        uncertainty=offset.uncertainty,
        skew=skew,
        origin=core.origin - origin,
        at=whole.at(whole.origin + 2.5),
        now=core.now(),
    )
    job.agreed_exit(world, 0)
