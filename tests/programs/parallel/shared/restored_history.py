# SPDX-License-Identifier: Apache-2.0
"""Fill the history of a resumed run on rank 0, and read it on all ranks. Argument: folder."""

import sys

import pytest

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.shared.history import WindowHistory, restore
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.record import ABANDONED, OUTCOME, PROPOSED
from tests.helpers.parallel.rows import proposed, report

world = job.start_mpi()
history = WindowHistory(world, None, 4)
records = {0: proposed(0, 1), 2: proposed(1, 1, 7)}
if world.rank == 0:
    restore(history, 3, records)
world.Barrier()
history.refresh()
assert history.summaries()["kind"].tolist() == [PROPOSED, ABANDONED, PROPOSED]
assert all(history.record(slot).tobytes() == record.tobytes() for slot, record in records.items())
with pytest.raises(KeyError, match="abandoned"):
    history.record(1)
world.Barrier()

# What comes next has the next slot.
if world.rank == world.size - 1:
    assert history.append(proposed(1, 2)) == 3
world.Barrier()
if world.rank == 0:
    assert history.refresh() == 1 and OUTCOME not in history.summaries()["kind"]
    with pytest.raises(HistoryFull):
        restore(history, 1, {})
history.close()
report(sys.argv[1], world.rank, done=True)
