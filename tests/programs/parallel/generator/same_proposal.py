# SPDX-License-Identifier: Apache-2.0
"""Generator 0, on the last rank, makes a candidate of the same history among any number of ranks: by
`choose_candidate` alone, with what it remembers of shorter histories, and by a whole CandidateMaker.
Arguments: folder, finished trials."""

import sys
import time

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.generator.choice import choose_candidate, hpo_of, search_of
from aiperf_mpi.parallel.generator.maker import CandidateMaker
from aiperf_mpi.parallel.generator.vacancies import Vacancy
from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared.claims import WindowClaims
from aiperf_mpi.parallel.shared.history import WindowHistory
from aiperf_mpi.parallel.shared.queue import open_queues
from aiperf_mpi.parallel.shared.slots import READY, Slot
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView
from tests.helpers.parallel.contexts import fake_context
from tests.helpers.parallel.past import children, small, write_past
from tests.helpers.parallel.rows import node_of, report

folder, finished = sys.argv[1], int(sys.argv[2])
world = job.start_mpi()
config = small("run.seed=11")
node = node_of(world)
history, claims = WindowHistory(world, node, 8 * finished), WindowClaims(world, 16 * finished)
initial = Architecture(config.base)
last, half = world.rank == world.size - 1, finished // 2
memory = search_of(config), hpo_of(config), ArchitectureCache()


def candidate(search, hpo, cache, attempt=0):
    history.refresh()
    view = HistoryView(history.summaries(), history.record, initial, cache)
    made = choose_candidate(config, search, hpo, view, Vacancy(0, 0, None, Slot(0, 5 << 40)), 1, attempt)
    return made.to_record(0.0).tobytes().hex()


# The past comes in two parts, so that one generator has looked at the first of them.
past, values = children(config, finished), {}
for part in (slice(0, half), slice(half, finished)):
    if world.rank == 0:
        write_past(history, None, past[part], part.start)
    wait(world.Ibarrier())
    if last and part.start == 0:
        values["early"] = [candidate(*memory, attempt) for attempt in range(2)]
    wait(world.Ibarrier())
if last:
    values["kept"] = [candidate(*memory, attempt) for attempt in range(3)]
    values["fresh"] = [candidate(search_of(config), hpo_of(config), ArchitectureCache(), n) for n in range(3)]

    # The same through its thread, which is handed the records.
    (queue,) = open_queues(job.MPI.COMM_SELF, 1, 1, first_ticket=5)
    context = fake_context(
        config=config, history=history, claims=claims, queues=(queue,), queue_group_generators=1
    )
    maker = CandidateMaker(context, lambda candidate: "", 0, ((0, queue),))
    limit = time.monotonic() + 60
    while queue.count(READY) == 0 and time.monotonic() < limit:
        maker.advance()
        time.sleep(0.001)
    record = queue.take().record
    record["t"], record["trial"] = 0.0, -1
    maker.close()
    queue.close()
    values["whole"] = record.tobytes().hex()[:-8]
wait(world.Ibarrier())
claims.close()
history.close()
report(folder, world.rank, **values)
