# SPDX-License-Identifier: Apache-2.0
"""Two trainers read the batches of a validation; a rank cannot read its second one. Arguments: folder."""

import sys

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.replica.best import read_together
from aiperf_mpi.parallel.replica.team import Team
from tests.helpers.parallel.rows import report


def batches(breaks):
    """Yield three batches, or raise for the second one."""
    for number in range(3):
        if breaks and number == 1:
            raise OSError("a shard cannot be read")
        yield number


with job.job() as world:
    team, ends = Team(world), []
    for broken in (-1, 0, 1):
        seen, error = [], ""
        try:
            for batch in read_together(team, batches(world.rank == broken)):
                seen.append(batch)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        ends.append([seen, error])
    report(sys.argv[1], world.rank, ends=ends)
    job.agreed_exit(world, 0)
