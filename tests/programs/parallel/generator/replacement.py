# SPDX-License-Identifier: Apache-2.0
"""Stale candidates of one queue are replaced, step by step, on one rank. Argument: folder."""

import sys
import threading
import time
from types import SimpleNamespace

import numpy as np

from aiperf_mpi.parallel.generator import vacancies
from aiperf_mpi.parallel.generator.maker import CandidateMaker
from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.shared.claims import WindowClaims
from aiperf_mpi.parallel.shared.history import WindowHistory
from aiperf_mpi.parallel.shared.queue import open_queues
from aiperf_mpi.parallel.shared.slots import EMPTY, READY, TAKEN
from aiperf_mpi.parallel.trainer import lookahead
from aiperf_mpi.trials import record as rec
from tests.helpers.parallel.contexts import fake_context
from tests.helpers.parallel.past import children, small, write_past
from tests.helpers.parallel.rows import report
from tests.helpers.parallel.trainers import fake_trainer

world, me = job.start_mpi(), job.MPI.COMM_SELF
vacancies.STALE_SECONDS = 0.0
config = small("search.stale_after=1.5", "hpo.enabled=false")
history, claims = WindowHistory(me, None, 4096), WindowClaims(me, 8192)
(queue,) = open_queues(me, 1, 2)
context = fake_context(
    config=config, history=history, claims=claims, queues=(queue,), queue_group_generators=1
)
gate, at_gate = threading.Event(), threading.Event()
gate.set()


def check(candidate):
    at_gate.set()
    gate.wait(30)
    return ""


def until(done, seconds=30.0):
    """Advance until `done()`; after every step the queue is as full as it was."""
    limit, full = time.monotonic() + seconds, queue.count(READY)
    while not done():
        assert time.monotonic() < limit, "too slow"
        maker.advance()
        assert queue.count(READY) >= full
        time.sleep(0.0005)


def trials():
    return {candidate.ticket: int(candidate.record["trial"]) for candidate in queue.waiting()}


def proposed():
    history.refresh()
    return int(np.sum(history.summaries()["kind"] == rec.PROPOSED))


def status(trial):
    history.refresh()
    rows = history.summaries()
    statuses = rows["status"][(rows["kind"] == rec.OUTCOME) & (rows["trial"] == trial)]
    assert len(statuses) <= 1
    return int(statuses[0]) if len(statuses) else rec.NONE


def settle(seconds):
    """Advance for a while, and until nothing is under way."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit or maker.busy:
        maker.advance()
        time.sleep(0.0005)


past = children(config, 100)
write_past(history, claims, past[:10])
maker = CandidateMaker(context, check, 0, ((0, queue),))
until(lambda: queue.count() == 2)
first = trials()
assert set(first) == {1, 2}

# 15 is not more than 1.5 times 10; 16 is, and both are replaced, in their places.
write_past(history, claims, past[10:15], 10)
settle(0.3)
assert trials() == first and maker.replaced == 0
write_past(history, claims, past[15:16], 15)
until(lambda: maker.replaced == 2)
second = trials()
assert set(second) == {1, 2} and not set(second.values()) & set(first.values())
assert [status(trial) for trial in first.values()] == [rec.DROPPED] * 2
assert [status(trial) for trial in second.values()] == [rec.NONE] * 2

# The keys of the dropped can be claimed again, those of the new ones cannot; once is enough.
for trial in first.values():
    key = int(history.record(trial)["key"])
    assert claims.claim(key) and not claims.claim(key)
    claims.release(key)
assert not any(claims.claim(int(history.record(trial)["key"])) for trial in second.values())
settle(0.3)
assert trials() == second and maker.replaced == 2

# The trainer takes a candidate whose replacement is being checked: the replacement is dropped, the trainer's
# is not.
write_past(history, claims, past[16:30], 16)
gate.clear()
at_gate.clear()
before = proposed()
until(at_gate.is_set)
assert trials() == second
taken = queue.take()
assert int(taken.record["trial"]) == second[1]
gate.set()
settle(0.2)
lost = [trial for trial in range(len(history)) if history.summaries()[trial]["kind"] == rec.PROPOSED][
    before:
][0]
assert status(lost) == rec.DROPPED and status(second[1]) == rec.NONE
assert claims.claim(int(history.record(lost)["key"]))
claims.release(int(history.record(lost)["key"]))

# The second ticket was replaced after that; while a place is free, nothing is: it comes first.
until(lambda: maker.replaced == 3)
third = trials()
assert set(third) == {2} and third[2] != second[2]
queue.accept(taken)
assert queue.count(EMPTY) == 1
write_past(history, claims, past[30:60], 30)
until(lambda: queue.count() == 2)
assert maker.replaced == 3 and trials()[2] == third[2]
until(lambda: maker.replaced == 4)

# A choice that comes too late leaves no record: the candidate is taken before its replacement has a trial
# number.
taken = queue.take()
assert taken.ticket == 2 and status(int(taken.record["trial"])) == rec.NONE
queue.accept(taken)
until(lambda: queue.count() == 2)
before = proposed()
waiting = queue.waiting()[0]
maker._vacancy = vacancies.Vacancy(0, 0, queue, waiting.slot, replacing=True)
maker._choose(maker._vacancy)
taken = queue.take()
while maker._chosen is not None:
    maker.advance()
assert proposed() == before and int(taken.record["trial"]) == int(waiting.record["trial"])
queue.accept(taken)
until(lambda: queue.count() == 2)

# A candidate that its trainer prepares ahead is not replaced, however stale, and comes next; the one after
# it is replaced.
made = []
lookahead.Preparation = lambda replica, taken: (
    made.append(
        SimpleNamespace(
            taken=taken, problem="", checked=True, done=False, during_trial=False, advance=lambda: None
        )
    )
    or made[-1]
)
replica = fake_trainer(context, queue=queue, training=True)
making = lookahead.Lookahead(replica, True)
making.advance()
taken = made[0].taken
first, second = int(taken.record["trial"]), int(queue.waiting()[0].record["trial"])
write_past(history, claims, past[60:100], 60)
replaced = maker.replaced
until(lambda: maker.replaced == replaced + 1)
settle(0.3)
assert maker.replaced == replaced + 1 and queue.count(TAKEN) == 1 and queue.count() == 1
assert (status(first), status(second)) == (rec.NONE, rec.DROPPED)
assert made[0].during_trial and taken.ticket == queue.expected and queue.take() is None
assert making.next() is made[0] and not made[0].during_trial and len(made) == 1
queue.accept(taken)
until(lambda: queue.count() == 2)

# The initial architecture is never replaced, however little was known when it was queued.
maker.close()
(other,) = open_queues(me, 1, 1)
assert other.publish(other.reserve(), history.record(0), 0)
maker = CandidateMaker(context, check, 0, ((0, other),))
settle(0.3)
assert maker.replaced == 0 and int(other.take().record["trial"]) == 0
maker.close()
other.close()
queue.close()
claims.close()
history.close()
report(sys.argv[1], world.rank, done=True)
