# SPDX-License-Identifier: Apache-2.0
"""Run a node of trainers and generators: the first ranks take, the others publish. Some candidates are
rejected, given up or retracted, and one generator stops with a slot. Arguments: folder, trainers, tickets
each,
depth, "shared" or "apart" for the window's memory."""

import random
import sys
import time

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared import queue as queue_module
from tests.helpers.parallel.rows import proposed, report

folder, trainers, tickets, depth, memory = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
world = job.start_mpi()
trainers = min(trainers, world.size)
queues = queue_module.open_queues(world, trainers, depth, shared=memory == "shared", lease=0.5)
rng = random.Random(world.rank)
alone = world.size == trainers
silent = world.rank == trainers and world.size > trainers + 1
made, taken, freed, given_up, retracted = 0, [], 0, 0, 0
limit = time.monotonic() + 90
stop = None


def generate(queue):
    """Publish one candidate with its generator and a number; the trial id has both."""
    global made, given_up, retracted
    slot = queue.reserve()
    if slot is None:
        return
    if rng.random() < 0.1:
        slot = queue.renew(slot)
        if slot is None:
            return
    if rng.random() < 0.05:
        given_up += queue.give_up(slot)
        return
    trial = world.rank << 32 | made
    made += 1
    if queue.publish(slot, proposed(world.rank, slot.ticket, made - 1), trial) and rng.random() < 0.02:
        seen = [candidate.slot for candidate in queue.waiting() if int(candidate.record["trial"]) == trial]
        again = queue.retract(seen[0]) if seen else None
        if again is not None:
            retracted += 1
            queue.give_up(again.slot)


def take(queue):
    """Take one candidate, and reject it with a chance of 1 in 7."""
    candidate = queue.take()
    if candidate is None:
        return False
    record, accepted = candidate.record, rng.random() > 1 / 7
    taken.append(
        [candidate.ticket, int(record["trial"]), int(record["replica"]), int(record["generator"]), accepted]
    )
    (queue.accept if accepted else queue.reject)(candidate)
    return True


if silent:
    # It reserves one slot and does nothing more, as if it were dead.
    while queues[0].reserve() is None:
        time.sleep(0.001)

if world.rank < trainers:
    queue = queues[world.rank]
    while queue.accepted < tickets and time.monotonic() < limit:
        if alone:
            generate(queue)
        if not take(queue):
            time.sleep(0.0005)
    stop = world.Ibarrier()
    while not stop.Test():
        time.sleep(0.001)
else:
    # Generators go on until all trainers are done.
    stop = world.Ibarrier()
    while not stop.Test():
        for queue in () if silent else queues:
            generate(queue)
        time.sleep(0.0005)
freed = sum(queue.freed for queue in queues)
states = [[slot.state for slot in queue.slots()] for queue in queues]
wait(world.Ibarrier())
for queue in queues:
    queue.close()
report(
    folder,
    world.rank,
    taken=taken,
    made=made,
    freed=freed,
    given_up=given_up,
    retracted=retracted,
    states=states,
)
