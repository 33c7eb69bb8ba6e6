# SPDX-License-Identifier: Apache-2.0
"""Generators replace candidates at every finished trial while a trainer takes them. Rank 0 hosts the log,
rank 1 trains (in no time), the others generate. Arguments: folder, rounds."""

import random
import sys
import time

from aiperf_mpi.parallel.generator import vacancies
from aiperf_mpi.parallel.generator.maker import CandidateMaker
from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared.claims import WindowClaims
from aiperf_mpi.parallel.shared.history import WindowHistory
from aiperf_mpi.parallel.shared.queue import open_queues
from aiperf_mpi.trials import record as rec
from tests.helpers.parallel.contexts import fake_context
from tests.helpers.parallel.past import children, small, write_past
from tests.helpers.parallel.rows import node_of, report

folder, rounds = sys.argv[1], int(sys.argv[2])
world = job.start_mpi()
vacancies.STALE_SECONDS = 0.0
config = small(
    "search.method='evolution'", "search.population=12", "search.sample_size=4", "search.stale_after=1.0"
)
node = node_of(world)
history, claims = WindowHistory(world, node, 1 << 14), WindowClaims(world, 1 << 15)
queues = open_queues(node, 1, 3) if world.rank else ()
if world.rank == 0:
    write_past(history, claims, children(config, 10))
wait(world.Ibarrier())
history.refresh()
values = {"taken": [], "replaced": 0, "waited": 0}
stop = None
if world.rank == 1:
    queue, rng, limit = queues[0], random.Random(5), time.monotonic() + 90
    while queue.accepted < rounds and time.monotonic() < limit:
        taken = queue.take()
        if taken is None:
            time.sleep(0.0005)
            continue
        values["taken"].append([taken.ticket, int(taken.record["round"]), int(taken.record["trial"])])
        queue.accept(taken)
        trial = int(taken.record["trial"])
        row = rec.rejection(taken.record, trial, 1.0, "", rec.DONE)
        row["best_error"] = 0.2 + rng.random() / 10
        history.append(rec.seal(row))
        # Generators have time to spare only when the queue is full.
        while queue.count() < queue.depth and time.monotonic() < limit:
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.3)
    stop = world.Ibarrier()
    while not stop.Test():
        time.sleep(0.001)
elif world.rank:
    maker = CandidateMaker(
        fake_context(
            config=config,
            history=history,
            claims=claims,
            queues=queues,
            queue_group_generators=world.size - 2,
        ),
        lambda candidate: "",
        world.rank - 2,
        ((0, queues[0]),),
    )
    stop = world.Ibarrier()
    while not stop.Test():
        if not maker.advance():
            time.sleep(0.0005)
    maker.close()
    values["replaced"] = maker.replaced
else:
    wait(world.Ibarrier())
wait(world.Ibarrier())
history.refresh()
if world.rank == 0:
    rows, summaries = history.records(range(len(history))), history.summaries()
    ended = [(int(row["trial"]), int(row["status"])) for row in rows if row["kind"] == rec.OUTCOME]
    values["keys"] = {
        int(slot): int(row["key"]) for slot, row in enumerate(rows) if row["kind"] == rec.PROPOSED
    }
    values["dropped"] = [trial for trial, status in ended if status == rec.DROPPED]
    values["twice"] = len(ended) - len({trial for trial, _ in ended})
    free = [trial for trial in values["dropped"]]
    live = {values["keys"][trial] for trial in values["keys"] if trial not in set(free)}
    values["held"] = sum(not claims.claim(key) for key in {values["keys"][trial] for trial in free} - live)
wait(world.Ibarrier())
for queue in queues:
    queue.close()
claims.close()
history.close()
report(folder, world.rank, **values)
