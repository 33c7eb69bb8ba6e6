# SPDX-License-Identifier: Apache-2.0
"""A thread reads all trials of a long history through the RecordReader of a generator rank, together and one
by one, and chooses a candidate. Arguments: folder, finished trials, trials read one by one."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.generator.generator import WORKING_SECONDS
from aiperf_mpi.parallel.generator.reading import RecordReader, learnt_slots
from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared.history import WindowHistory
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.view import HistoryView
from tests.helpers.parallel.past import children, small, write_past
from tests.helpers.parallel.rows import node_of, report

folder, finished, singly = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
world = job.start_mpi()
config = small()
history = WindowHistory(world, node_of(world), 2 * finished + 8)
if world.rank == 0:
    some = children(config, 200)
    write_past(history, None, [some[0]] + [some[1 + n % 199] for n in range(finished - 1)])
wait(world.Ibarrier())
values = {}
if world.rank == 1:
    history.refresh()
    executor = ThreadPoolExecutor(1)

    def timed(work):
        """Seconds that the thread takes while this rank looks after it as a generator rank does."""
        started, future = time.monotonic(), executor.submit(work)
        while not future.done():
            reader.serve()
            time.sleep(WORKING_SECONDS)
        return time.monotonic() - started, future.result()

    reader = RecordReader(history.records)
    trials = [slot for slot in range(len(history)) if history.summaries()[slot]["kind"] == rec.PROPOSED]
    values["trials"] = len(trials)
    values["together"], _ = timed(lambda: reader.read_ahead(trials))
    values["answers"] = reader.answers
    values["whole"] = all(rec.check(reader.record(trial)) for trial in trials[::97])
    before = RecordReader(history.records)
    reader, together = before, reader
    ones = trials[-singly:]
    values["singly"], one_by_one = timed(lambda: [before.record(trial) for trial in ones])
    values["alike"] = [row.tobytes() for row in one_by_one] == [
        together.record(trial).tobytes() for trial in ones
    ]

    # The search asks for no record that was not read ahead.
    view = HistoryView(history.summaries(), lambda slot: reader.record(slot), Architecture(config.base))
    reader = RecordReader(history.records)
    slots = learnt_slots(view)
    timed(lambda: reader.read_ahead(slots))
    asked = reader.answers
    from aiperf_mpi.parallel.generator.choice import search_of  # noqa: I001
    import numpy as np

    values["thought"], _ = timed(lambda: search_of(config).propose(view, np.random.default_rng(1)))
    values["asked_again"], values["needed"] = reader.answers - asked, len(slots)
wait(world.Ibarrier())
history.close()
report(folder, world.rank, **values)
