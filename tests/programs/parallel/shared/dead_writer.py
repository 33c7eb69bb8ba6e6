# SPDX-License-Identifier: Apache-2.0
"""Let rank 1 draw a slot and stop, while the others append after it. Rank 0 closes the slot after the lease,
and rank 1, which was only slow, appends again. Then rank 1 holds the node's reader lock for ever.
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
values = {}

if world.rank == 1:
    slot = history.reserve()
world.Barrier()
if world.rank > 1:
    history.append(proposed(world.rank))
world.Barrier()
history.refresh()
values["hidden"] = len(history)
world.Barrier()

if world.rank == 0:
    values["early"] = history.abandon_stale()
    time.sleep(1.5 * LEASE)
    values["abandoned"] = history.abandon_stale()
    values["again"] = history.abandon_stale()
world.Barrier()
if world.rank == 1:
    values["commit"] = history.commit(slot, proposed(1, 5))
    values["appended"] = history.append(proposed(1, 5))
world.Barrier()
history.refresh()
values["kinds"] = history.summaries()["kind"].tolist()
values["same"] = history.summaries()[0].tobytes() == rec.abandoned_summary().tobytes()
if world.rank == 0:
    values["committed"] = [slot for slot, record in history.committed_since(0) if record is not None]
world.Barrier()

# The ranks of a node must read on after a reader dies with the lock.
if world.rank == 1:
    values["locked"] = history._mirror.lock()
    history.append(proposed(1, 6))
world.Barrier()
if world.rank > 1:
    history.refresh()
    values["blind"] = len(history)
    time.sleep(1.5 * LEASE)
    deadline = time.monotonic() + 10
    while len(history) < values["blind"] + 1 and time.monotonic() < deadline:
        history.refresh()
        time.sleep(0.01)
    values["seeing"] = len(history)
world.Barrier()
history.close()
report(sys.argv[1], world.rank, **values)
