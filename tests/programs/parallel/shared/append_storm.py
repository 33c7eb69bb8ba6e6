# SPDX-License-Identifier: Apache-2.0
"""Append on all ranks at once, and read meanwhile. Arguments: folder, repeats, appends of a rank, seconds
for which rank 0 computes without entering MPI instead of appending (0: it appends too), "mirror" or "alone"
for the readers."""

import sys
import time
from collections import Counter

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared.history import WindowHistory
from aiperf_mpi.trials import record as rec
from tests.helpers.parallel.rows import node_of, proposed, report

folder, repeats, appends, busy, reader = sys.argv[1], *map(float, sys.argv[2:5]), sys.argv[5]
repeats, appends = int(repeats), int(appends)
world = job.start_mpi()
node = node_of(world) if reader == "mirror" else None
writers = world.size if not busy or world.size == 1 else world.size - 1
runs = []

for repeat in range(repeats):
    history = WindowHistory(world, node, writers * appends)
    world.Barrier()
    started, slots, wrong = time.monotonic(), [], 0
    if world.rank == 0 and busy and world.size > 1:
        while time.monotonic() - started < busy:
            sum(range(1000))
    else:
        for i in range(appends):
            slots.append(history.append(proposed(world.rank, i, repeat)))
            if i % 7 == 0:
                # A reader sees only whole records, at any moment.
                before = len(history)
                history.refresh()
                for slot in range(before, len(history)):
                    wrong += (
                        history.summaries()[slot].tobytes() != rec.summarise(history.record(slot)).tobytes()
                    )
    seconds = time.monotonic() - started

    # Each record that was written is there once and whole, alike on all ranks.
    wait(world.Ibarrier())
    deadline = time.monotonic() + 20
    while len(history) < history.capacity and time.monotonic() < deadline:
        history.refresh()
    rows = [] if len(history) < history.capacity else history.records(range(len(history)))
    counts = Counter((int(row["replica"]), int(row["round"]), int(row["generator"])) for row in rows)
    ranks = range(world.size - writers, world.size)
    lost = sum((rank, i, repeat) not in counts for rank in ranks for i in range(appends))
    mine = (
        sum(
            int(rows[slot]["replica"]) != world.rank or int(rows[slot]["round"]) != i
            for i, slot in enumerate(slots)
        )
        if rows
        else len(slots)
    )
    runs.append(
        {
            "rows": len(history),
            "lost": lost,
            "twice": sum(n > 1 for n in counts.values()),
            "wrong": wrong,
            "elsewhere": mine,
            "seconds": seconds,
            "fetched": history.log.fetched,
        }
    )
    wait(world.Ibarrier())
    history.close()
report(folder, world.rank, runs=runs, writers=writers)
