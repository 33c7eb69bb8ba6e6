# SPDX-License-Identifier: Apache-2.0
"""Measure each operation of the other ranks while rank 0 stays out of MPI for 400 ms, as the control of an
emulated network. Argument: folder."""

import sys
import time

import numpy as np

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared.window import HostedWindow
from tests.helpers.parallel.rows import report

SLEEP = 0.4

world = job.start_mpi()
window = HostedWindow(world, 4096)
data = np.arange(32, dtype=np.uint64)


def get():
    window.get(512, data)
    window.flush()


def put():
    window.put(512, data)
    window.flush()


operations = {
    "get": get,
    "put": put,
    "fetch_and_add": lambda: window.fetch_and_add(0, 1),
    "compare_and_swap": lambda: window.compare_and_swap(8, 0, 0),
    "words": lambda: window.words(64, 8),
}
seconds = {}
for name, operation in operations.items():
    # Run once while the target is in MPI: a first operation may have to connect.
    operation()
    wait(world.Ibarrier())
    time.sleep(0.05)
    world.Barrier()
    if world.rank == 0:
        time.sleep(SLEEP)
    else:
        time.sleep(0.02)
        started = time.monotonic()
        operation()
        seconds[name] = time.monotonic() - started
    wait(world.Ibarrier())
window.free()
report(sys.argv[1], world.rank, seconds=seconds)
