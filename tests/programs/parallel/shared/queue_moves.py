# SPDX-License-Identifier: Apache-2.0
"""Make the transitions of one queue, one after the other, on one rank. Argument: folder."""

import sys

import pytest

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.shared import queue as queue_module
from aiperf_mpi.parallel.shared.slots import EMPTY, FILLING, READY, TAKEN
from aiperf_mpi.trials.record import RecordError
from tests.helpers.parallel.rows import proposed, report

now = 0.0
world = job.start_mpi()


def states():
    return [slot.state for slot in queue.slots()]


def tickets():
    return [slot.ticket for slot in queue.slots()]


(queue,) = queue_module.open_queues(job.MPI.COMM_SELF, 1, 2, lease=10.0, clock=lambda: now)
assert states() == [EMPTY, EMPTY] and tickets() == [1, 2] and queue.expected == 1 and queue.take() is None

# Two tickets can be filled; the second one is ready first, but not taken before the first.
one, two = queue.reserve(), queue.reserve()
assert (one.ticket, two.ticket) == (1, 2) and queue.reserve() is None and states() == [FILLING, FILLING]
assert queue.publish(two, proposed(0, 2), 12) and queue.take() is None
assert queue.publish(one, proposed(0, 1), 11) and queue.count() == 2

# A taken candidate does not wait, and cannot be retracted; the next one is taken after it is accepted.
seen = queue.waiting()[0]
assert (
    (seen.ticket, int(seen.record["trial"])) == (1, 11)
    and states() == [READY, READY]
    and queue.still(seen.slot)
)
taken = queue.take()
assert (taken.ticket, int(taken.record["trial"])) == (1, 11) and states() == [TAKEN, READY]
assert queue.take() is None and not queue.still(seen.slot) and queue.retract(seen.slot) is None

# A rejected ticket is filled again, and the trainer waits for it, though the second one is ready.
queue.reject(taken)
assert queue.expected == 1 and queue.take() is None and tickets() == [1, 2]
again = queue.reserve()
assert again.ticket == 1 and queue.publish(again, proposed(0, 1, 5), 13)
taken = queue.take()
assert int(taken.record["trial"]) == 13
queue.accept(taken)
assert queue.expected == 2 and states() == [EMPTY, READY] and tickets() == [3, 2]
queue.accept(queue.take())
assert tickets() == [3, 4] and queue.accepted == 3 - 1 and queue.rejected == 1

# A slot that another rank has moved is not moved by an old word, in any direction.
for move in (queue.renew, queue.give_up, lambda slot: queue.publish(slot, proposed(0, slot.ticket), 1)):
    assert not move(one)
with pytest.raises(RuntimeError, match="not held"):
    queue.accept(taken)

# The lease runs from the moment at which the slot was first seen filling; renewing it starts it again.
three = queue.reserve()
assert queue.free_stale() == []
now = 9.0
three = queue.renew(three)
assert queue.free_stale() == []
now = 18.0
assert queue.free_stale() == [] and states()[0] == FILLING
now = 20.0
assert queue.free_stale() == [3] and states()[0] == EMPTY and queue.freed == 1
assert not queue.publish(three, proposed(0, 3), 20) and queue.renew(three) is None

# A slot that is given up or retracted keeps its ticket.
three = queue.reserve()
assert three.ticket == 3 and queue.give_up(three) and tickets() == [3, 4]
three = queue.reserve()
assert queue.retract(three) is None and queue.publish(three, proposed(0, 3), 21)
seen = queue.waiting()[0]
assert seen.ticket == 3 and int(seen.record["trial"]) == 21 and queue.still(seen.slot)
back = queue.retract(seen.slot)
assert queue.retract(seen.slot) is None and not queue.still(seen.slot)
assert back.ticket == 3 and int(back.record["trial"]) == 21 and states()[0] == FILLING
assert queue.publish(back.slot, proposed(0, 3), 22) and queue.retract(seen.slot) is None
assert [int(candidate.record["trial"]) for candidate in queue.waiting()] == [22]
seen = queue.waiting()[0]
assert int(queue.take().record["trial"]) == 22 and queue.waiting() == [] and queue.retract(seen.slot) is None

# Only a sealed record of the slot's own round becomes ready.
four = queue.reserve()
with pytest.raises(ValueError, match="round 5"):
    queue.publish(four, proposed(0, 5), 1)
torn = proposed(0, 4)
torn["seed"] = 1
with pytest.raises(ValueError, match="not sealed"):
    queue.publish(four, torn, 1)
assert states() == [TAKEN, FILLING]
queue.close()

# A record that was overwritten in memory is noticed, and its ticket is filled again.
(queue,) = queue_module.open_queues(job.MPI.COMM_SELF, 1, 1, first_ticket=7)
slot = queue.reserve()
assert slot.ticket == 7 and queue.publish(slot, proposed(0, 7), 1)
queue._table.window.memory[queue._table.place(slot) + 40] ^= 1
with pytest.raises(RecordError, match="ticket 7"):
    queue.take()
assert states() == [EMPTY] and tickets() == [7] and queue.rejected == 1
queue.close()

# A run that is resumed goes on with round 5. Its candidates wait for their tickets; that for round 7 follows
# that of round 5 in its slot, and no generator can take the slot between the two.
(queue,) = queue_module.open_queues(job.MPI.COMM_SELF, 1, 2, first_ticket=[5])
queue.restore({30: proposed(0, 5), 31: proposed(0, 7)})
assert states() == [READY, EMPTY] and tickets() == [5, 6] and queue.expected == 5
taken = queue.take()
assert int(taken.record["trial"]) == 30
queue.accept(taken)
assert states() == [READY, EMPTY] and tickets() == [7, 6]
six = queue.reserve()
assert six.ticket == 6 and queue.publish(six, proposed(0, 6), 40)
for trial in (40, 31):
    taken = queue.take()
    assert int(taken.record["trial"]) == trial
    queue.accept(taken)
assert states() == [EMPTY, EMPTY] and tickets() == [9, 8]
with pytest.raises(RuntimeError, match=r"no place for the tickets \[13\]"):
    queue.restore({50: proposed(0, 13)})
queue.close()

for arguments in ((0, 2), (1, 0)):
    with pytest.raises(ValueError, match="all >= 1"):
        queue_module.open_queues(job.MPI.COMM_SELF, *arguments)
report(sys.argv[1], world.rank, done=True)
