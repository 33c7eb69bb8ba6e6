# SPDX-License-Identifier: Apache-2.0
"""Judge what the ranks of this job may use, as a run does before its core time; rank 0 prints the warnings.

The arguments are settings of the demo, as `data.workers=4`.
"""

from __future__ import annotations

import json
import sys

from aiperf_mpi.config import load
from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.allotment import judge_resources
from aiperf_mpi.parallel.launch.ranks import split

with job.job() as world:
    config = load("demo", (), sys.argv[1:])
    told = judge_resources(config, split(world))
    if world.rank == 0:
        print(json.dumps(told), flush=True)
    job.agreed_exit(world, 0)
