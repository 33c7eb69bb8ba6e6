# SPDX-License-Identifier: Apache-2.0
"""Claim the same keys on all ranks, each in its own order; release them, and race for them again.
Arguments: folder, keys, races."""

import random
import sys

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared.claims import WindowClaims
from tests.helpers.parallel.rows import report

folder, count, races = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
world = job.start_mpi()
claims = WindowClaims(world, 2 * count)
source = random.Random(7)
keys = [source.getrandbits(64) | 1 for _ in range(count)]
won = []
for race in range(races):
    order = keys.copy()
    random.Random(100 * race + world.rank).shuffle(order)
    world.Barrier()
    won.append([key for key in order if claims.claim(key)])
    wait(world.Ibarrier())
    if race + 1 < races:
        for key in won[-1]:
            claims.release(key)
    wait(world.Ibarrier())
values = {
    "claimed": claims.claimed,
    "refused": claims.refused,
    "released": claims.released,
    "probes": claims.probes,
}
claims.close()
report(folder, world.rank, won=won, **values)
