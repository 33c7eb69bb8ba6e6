# SPDX-License-Identifier: Apache-2.0
"""Two trainers of a replica prepare candidates, each at its own pace: both end alike, whatever fails on
one of them, and whenever the other one learns of it. Arguments: folder."""

import os
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.replica.agreements import Agreements
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.parallel.trainer import preparation as preparation_module
from aiperf_mpi.parallel.trainer.preparation import Preparation
from tests.helpers.parallel.contexts import fake_context
from tests.helpers.parallel.rows import report
from tests.helpers.parallel.trainers import fake_trainer

world = job.start_mpi()
team, agreements, pace = Team(world.Dup()), Agreements(world), random.Random(world.rank)
replica = fake_trainer(fake_context(rank=world.rank), agreements=agreements, team=team)
# Each rank's standard error goes to a file of its own.
stderr = Path(sys.argv[1]) / f"{world.rank}.stderr"
os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)

#: The failure of each rank at the first try, during a trial: a "problem", or an error of weights or of steps.
CASES = (
    {},
    {1: ("steps", RuntimeError("RESOURCE_EXHAUSTED"))},
    {0: ("steps", RuntimeError("RESOURCE_EXHAUSTED"))},
    {0: ("weights", MemoryError("none"))},
    {1: ("weights", OSError("gone"))},
    {0: ("problem", None)},
    {1: ("problem", None)},
    {0: ("problem", None), 1: ("problem", None)},
    {0: ("steps", ValueError("odd")), 1: ("steps", RuntimeError("RESOURCE_EXHAUSTED"))},
    {},
)


class Paced(Preparation):
    """A preparation whose weights and steps take some polls, and fail once as the case says."""

    case = None
    tries = 0

    def _work(self, what):
        for _ in range(pace.randrange(8)):
            yield "compile"
        if self.case is not None and self.case[0] == what:
            (_, error), self.case = self.case, None
            raise error
        return what

    def _find_weights(self, candidate):
        self.tries += 1
        yield from self._work("weights")
        return SimpleNamespace(difference=0.0)

    def _compile(self, candidate, weights, during_trial):
        made = yield from self._work("steps")
        self.training = SimpleNamespace(close=lambda: None)
        return made


ends = []
for trial, case in enumerate(CASES):
    mine = case.get(world.rank)
    problem = f"rank {world.rank}'s reason" if mine is not None and mine[0] == "problem" else ""
    preparation_module.rebuild = lambda state, record, problem=problem: (
        SimpleNamespace(parent_id=0, trial_id=record["trial"]),
        problem,
    )
    made = Paced(replica, SimpleNamespace(record={"trial": trial}))
    made.case = mine

    # It advances while a trial trains for some steps, which the trainers agree on, and then at its
    # turn, which one trainer reaches before the other.
    made.during_trial = True
    for _ in range(12):
        assert team.agree(0) == 0
        if pace.random() < 0.7:
            made.advance()
    made.during_trial = False
    limit = time.monotonic() + 60
    while not made.advance():
        assert time.monotonic() < limit
        time.sleep(0.001)
    ready = made.training is not None and made.failure is None
    ends.append([made.problem, type(made.failure).__name__, ready, made.tries])

# The run ends while one trainer is further than the other.
made = Paced(replica, SimpleNamespace(record=None))
preparation_module.rebuild = lambda state, record: (SimpleNamespace(parent_id=0, trial_id=len(CASES)), "")
for _ in range(3 if world.rank == 0 else 0):
    made.advance()
agreements.settle(team)
made.drop()
report(sys.argv[1], world.rank, ends=ends, posted=agreements._posted, stderr=stderr.read_text())
job.agreed_exit(world, 0)
