# SPDX-License-Identifier: Apache-2.0
"""Reserve the one slot of a queue on all ranks. The rank that has it adds one to a counter by a read and a
write, which loses counts as soon as two ranks have it. Arguments: folder, turns of each rank."""

import sys

import numpy as np

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared import queue as queue_module
from aiperf_mpi.parallel.shared.window import HostedWindow
from tests.helpers.parallel.rows import report

folder, turns = sys.argv[1], int(sys.argv[2])
world = job.start_mpi()
(queue,) = queue_module.open_queues(world, 1, 1)
counter, value = HostedWindow(world, 8), np.zeros(1, np.uint64)
world.Barrier()
held = refused = 0
while held < turns:
    slot = queue.reserve()
    if slot is None:
        refused += 1
        continue
    counter.get(0, value)
    counter.flush()
    value += np.uint64(1)
    counter.put(0, value)
    counter.flush()
    held += queue.give_up(slot)
wait(world.Ibarrier())
total = int(counter.words(0, 1)[0])
wait(world.Ibarrier())
counter.free()
queue.close()
report(folder, world.rank, held=held, refused=refused, total=total)
