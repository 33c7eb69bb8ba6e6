# SPDX-License-Identifier: Apache-2.0
"""Generators propose side by side, search and claims alone, until there are enough proposals. All ranks but
0, which hosts history and claims, generate. Arguments: folder, proposals, finished trials before they
begin."""

import sys
import time

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.generator.choice import choose_candidate, hpo_of, search_of
from aiperf_mpi.parallel.generator.vacancies import Vacancy
from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared.claims import WindowClaims
from aiperf_mpi.parallel.shared.history import WindowHistory
from aiperf_mpi.parallel.shared.slots import Slot
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView
from tests.helpers.parallel.past import children, small, write_past
from tests.helpers.parallel.rows import node_of, report

folder, wanted, finished = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
world = job.start_mpi()
config = small()
node = node_of(world)
history, claims = (
    WindowHistory(world, node, 2 * (wanted + finished) + 64),
    WindowClaims(world, 8 * (wanted + finished)),
)
if world.rank == 0:
    write_past(history, claims, children(config, finished))
wait(world.Ibarrier())
history.refresh()
past = len(history)
keys, refused, pending, stop = [], 0, 0, None
started = time.monotonic()
if world.rank:
    search, hpo, cache, initial = (
        search_of(config),
        hpo_of(config),
        ArchitectureCache(),
        Architecture(config.base),
    )
    # The fourth round, so that hyperparameters are suggested too; 4 << 40 is the state of a slot with that
    # ticket.
    vacancy = Vacancy(0, world.rank - 1, None, Slot(0, 4 << 40))
    attempt = 0
    while len(history) - past < wanted:
        view = HistoryView(history.summaries(), history.record, initial, cache)
        pending = max(pending, len(view.pending))
        candidate = choose_candidate(config, search, hpo, view, vacancy, 1, attempt)
        if claims.claim(candidate.key):
            history.append(candidate.to_record(0.0))
            keys.append(candidate.key)
            attempt = 0
        else:
            refused += 1
            attempt += 1
        before = len(history)
        history.refresh()
        attempt = attempt if len(history) == before else 0
wait(world.Ibarrier())
seconds = time.monotonic() - started
history.refresh()
values = {}
if world.rank == 0:
    rows = history.records(range(past, len(history)))
    values["logged"] = [int(row["key"]) for row in rows]
    values["kinds"] = sorted({int(row["kind"]) for row in rows})
    values["proposed"] = rec.PROPOSED
claims.close()
history.close()
report(
    folder,
    world.rank,
    keys=keys,
    refused=refused,
    pending=pending,
    seconds=seconds,
    jax="jax" in sys.modules,
    **values,
)
