# SPDX-License-Identifier: Apache-2.0
"""Rank 1 draws a slot and falls silent, the others append behind it; rank 0 gives the slot up after the
lease, and rank 1, which was only slow, appends again. Then rank 1 holds the node's reader lock for ever.
Argument: folder."""

import sys
import time

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.shared.history import WindowHistory
from aiperf_mpi.trials import record as rec
from tests.helpers.parallel.rows import node_of, proposed, report

LEASE = 0.3

world = job.start_mpi()
history = WindowHistory(world, node_of(world), 100, lease=LEASE)
found = {}

if world.rank == 1:
    slot = history.reserve()
world.Barrier()
if world.rank > 1:
    history.append(proposed(world.rank))
world.Barrier()
history.refresh()
found["hidden"] = len(history)
world.Barrier()

if world.rank == 0:
    found["early"] = history.abandon_stale()
    time.sleep(1.5 * LEASE)
    found["abandoned"] = history.abandon_stale()
    found["again"] = history.abandon_stale()
world.Barrier()
if world.rank == 1:
    found["commit"] = history.commit(slot, proposed(1, 5))
    found["appended"] = history.append(proposed(1, 5))
world.Barrier()
history.refresh()
found["kinds"] = history.summaries()["kind"].tolist()
found["same"] = history.summaries()[0].tobytes() == rec.abandoned_summary().tobytes()
if world.rank == 0:
    found["committed"] = [slot for slot, record in history.committed_since(0) if record is not None]
world.Barrier()

# A reader that dies with the lock must not blind its node.
if world.rank == 1:
    found["locked"] = history._mirror.lock()
    history.append(proposed(1, 6))
world.Barrier()
if world.rank > 1:
    history.refresh()
    found["blind"] = len(history)
    time.sleep(1.5 * LEASE)
    deadline = time.monotonic() + 10
    while len(history) < found["blind"] + 1 and time.monotonic() < deadline:
        history.refresh()
        time.sleep(0.01)
    found["seeing"] = len(history)
world.Barrier()
history.close()
report(sys.argv[1], world.rank, **found)
