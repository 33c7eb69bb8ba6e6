# SPDX-License-Identifier: Apache-2.0
"""All ranks join one cluster and sum over it; each reports the sum, or why it did not join, and the seconds.
Arguments: folder, value of parallel.address, and the rank that can open no more files (or none)."""

import os
import resource
import sys
import time

from aiperf_mpi.config import ConfigError
from aiperf_mpi.parallel.launch import job
from tests.helpers.parallel.rows import report

with job.job() as world:
    os.environ |= {"JAX_PLATFORMS": "cpu"}
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from aiperf_mpi.parallel.replica import cluster

    world.Barrier()
    if sys.argv[3:] == [str(world.rank)]:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
    begun, values = time.monotonic(), {}
    try:
        cluster.join(world, sys.argv[2])
        values["seconds"] = time.monotonic() - begun
        values["sum"] = float(multihost_utils.process_allgather(np.float32(world.rank + 1)).sum())
        values["devices"] = len(jax.devices())
        cluster.leave()
    except ConfigError as error:
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        values |= {"problem": str(error), "seconds": time.monotonic() - begun}
    report(sys.argv[1], world.rank, **values)
    job.agreed_exit(world, 0)
