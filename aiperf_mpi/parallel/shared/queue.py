# SPDX-License-Identifier: Apache-2.0
"""The queue of candidates of a replica, in a window on its first trainer's node.

A queue of depth d is a ring of d slots, and slot s holds the tickets s+1, s+1+d, s+1+2d, ... one after the
other. A ticket is the round number of its candidate and belongs to one slot, so that no two candidates can
have the same. A generator reserves the free slot with the lowest ticket and fills it; the trainer takes the
tickets in order. A slot moves on to its next ticket only when the trainer accepts its candidate. A rejected,
dropped or lost candidate leaves the ticket in its slot, free to be filled again.

    EMPTY(t) -> FILLING(t) -> READY(t) -> TAKEN(t) -> EMPTY(t + d)   accepted
                    |             |           '-----> EMPTY(t)       rejected
                    '-> EMPTY(t)  '-> FILLING(t)                     given up, or its owner died; retracted
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.shared.slots import EMPTY, FILLING, OWNERS, READY, TAKEN, Slot, SlotTable, fits
from aiperf_mpi.parallel.shared.window import HostedWindow
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.footprint import queue_bytes
from aiperf_mpi.trials.record import RECORD_DTYPE, RecordError

#: Seconds that a generator may fill a slot without `renew` before other ranks free the slot.
LEASE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Taken:
    """A candidate that the trainer took: its slot, and its sealed record with the trial id in
    `record["trial"]`."""

    slot: Slot
    record: np.void

    @property
    def ticket(self) -> int:
        """Round number of the candidate."""
        return self.slot.ticket


def open_queues(
    queue_group: MPI.Intracomm,
    queues: int,
    depth: int,
    *,
    shared: bool = True,
    first_ticket: int | Sequence[int] = 1,
    lease: float = LEASE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[CandidateQueue, ...]:
    """Make the queues of a queue group's replicas, in one window on the queue group's first rank.

    Return them in the order of `Ranks.queue_group_replicas`. Collective over `queue_group`, as closing them
    is: all ranks close all queues in this order.

    Arguments:
        queue_group: the trainers and generators of a node, or of all nodes that a replica spans.
        queues: replicas of the queue group.
        depth: candidates that wait for a trainer at most.
        shared: whether the queue group's ranks share memory; where not, an operation waits until the first
            rank enters MPI.
        first_ticket: where the rounds begin (later than 1 where a run goes on), of all queues or of each.
        lease: seconds after which a slot that is being filled is taken back.
        clock: seconds, of any origin.
    """
    firsts = [first_ticket] * queues if isinstance(first_ticket, int) else list(first_ticket)
    if depth < 1 or queues < 1 or len(firsts) != queues or min(firsts) < 1:
        raise ValueError(
            f"candidate queue: {queues} queues of depth {depth} from ticket {first_ticket}; all >= 1"
        )
    if queue_group.size > OWNERS:
        raise ValueError(
            f"candidate queue: {queue_group.size} ranks in a queue group, but a word has room for {OWNERS}"
        )
    each = queue_bytes(depth, queue_group.size)
    window = HostedWindow(queue_group, queues * each, shared)
    tables = [
        SlotTable(window, index * each, queue_group.rank, queue_group.size, depth) for index in range(queues)
    ]

    # The first rank writes the first tickets; no rank may look before.
    if queue_group.rank == 0:
        for table, first in zip(tables, firsts, strict=True):
            table.write_first_tickets(first)
    queue_group.Barrier()
    return tuple(
        CandidateQueue(table, first, lease, clock) for table, first in zip(tables, firsts, strict=True)
    )


class CandidateQueue:
    """One replica's queue, as one rank of its queue group sees it; made by `open_queues`.

    Attributes:
        published, taken, accepted, rejected, freed: transitions that this rank has made.
    """

    def __init__(self, table: SlotTable, first_ticket: int, lease: float, clock: Callable[[], float]) -> None:
        self.depth, self.rank = table.depth, table.rank
        self._table = table
        self._first, self._next = first_ticket, first_ticket
        self._lease, self._clock = lease, clock
        self._seen: dict[int, tuple[int, float]] = {}
        self._later: dict[int, tuple[np.void, int]] = {}  # restored candidates for the next tickets of slots
        self.published = self.taken = self.accepted = self.rejected = self.freed = 0

    # -- both

    def slots(self) -> tuple[Slot, ...]:
        """Return all slots as they are now."""
        return self._table.read()

    def count(self, state: int = READY) -> int:
        """Return the number of slots in a state."""
        return sum(slot.state == state for slot in self.slots())

    def free_stale(self) -> list[int]:
        """Free the slots that this rank has seen FILLING and unchanged for longer than the lease.

        Return their tickets. Every `reserve` does this too.
        """
        now, freed = self._clock(), []
        for slot in self.slots():
            word, since = self._seen.get(slot.index, (None, now))
            if slot.state != FILLING or slot.word != word:
                self._seen[slot.index] = (slot.word, now)
            elif now - since > self._lease and self._table.move(slot, slot.moved(EMPTY)):
                self.freed += 1
                freed.append(slot.ticket)
        return freed

    # -- the generator's side

    def reserve(self) -> Slot | None:
        """Reserve the free slot with the lowest ticket for this rank, and return it, now FILLING.

        Return None if all are in use. Call `free_stale` first.
        """
        self.free_stale()
        for slot in sorted(self.slots(), key=lambda slot: slot.ticket):
            if slot.state == EMPTY:
                mine = slot.moved(FILLING, owner=self.rank)
                if self._table.move(slot, mine):
                    return mine
        return None

    def renew(self, mine: Slot) -> Slot | None:
        """Begin a new lease of this rank's slot; return the slot to go on with, None if it was taken away."""
        renewed = mine.moved(FILLING)
        return renewed if self._table.move(mine, renewed) else None

    def publish(self, mine: Slot, record: np.void, trial_id: int) -> bool:
        """Make the slot READY with a candidate; return False if the slot was taken away, and the candidate
        must be dropped.

        `record` is the sealed PROPOSED record of trial `trial_id` (dtype RECORD_DTYPE). Raises ValueError
        unless it is sealed and its round is the slot's ticket.
        """
        if not fits(mine, record):
            raise ValueError(
                f"candidate queue: the record for ticket {mine.ticket} is not sealed, or of round "
                f"{int(record['round'])}"
            )
        row = np.empty(1, RECORD_DTYPE)
        row[0] = record
        row["trial"] = trial_id
        self._table.write_record(mine, rec.seal(row[0]))
        done = self._table.move(mine, mine.moved(READY))
        self.published += done
        return done

    def restore(self, records: Mapping[int, np.void]) -> None:
        """Publish candidates for their tickets, in a queue that no other rank uses yet.

        `records` are sealed PROPOSED records by trial id, at most one for each ticket. A candidate for a
        slot's next ticket is published when the one before it is accepted, on the rank that accepts. Raises
        RuntimeError where a candidate has no place.
        """
        by_ticket = {int(record["round"]): (record, trial) for trial, record in records.items()}
        kept: list[Slot] = []
        while (mine := self.reserve()) is not None:
            if mine.ticket in by_ticket:
                self.publish(mine, *by_ticket.pop(mine.ticket))
            else:
                kept.append(mine)
        for mine in kept:
            self.give_up(mine)
        self._later = by_ticket
        if any(not 0 <= ticket - self._first - self.depth < self.depth for ticket in by_ticket):
            raise RuntimeError(
                f"candidate queue: no place for the tickets {sorted(by_ticket)} of a resumed run"
            )

    def give_up(self, mine: Slot) -> bool:
        """Free the slot without a candidate; the next rank that reserves it fills its ticket."""
        return self._table.move(mine, mine.moved(EMPTY))

    # -- the trainer's side

    @property
    def expected(self) -> int:
        """The ticket that `take` waits for, on the trainer."""
        return self._next

    def take(self) -> Taken | None:
        """Take the candidate of the next ticket in order; return None while it is not ready.

        `accept` or `reject` must follow. Raises RecordError for a record that is torn or of another round;
        its ticket is then filled again.
        """
        slot = self.slots()[(self._next - self._first) % self.depth]
        if slot.state != READY or slot.ticket != self._next:
            return None
        mine = slot.moved(TAKEN)
        if not self._table.move(slot, mine):
            return None
        self.taken += 1
        try:
            return Taken(mine, self._table.read_record(mine))
        except RecordError:
            self._table.move(mine, mine.moved(EMPTY))
            self.rejected += 1
            raise

    def accept(self, taken: Taken) -> None:
        """Use up the ticket of a candidate that is trained: its slot is free for the ticket `depth` later."""
        ticket = taken.ticket + self.depth
        if ticket in self._later:
            mine = taken.slot.moved(FILLING, owner=self.rank, ticket=ticket)
            self._move_taken(taken, mine)
            self.publish(mine, *self._later.pop(ticket))
        else:
            self._release(taken, ticket)
        self._next = taken.ticket + 1
        self.accepted += 1

    def reject(self, taken: Taken) -> None:
        """Return the ticket of a candidate that is not trained: it is filled again, and `take` waits for
        it."""
        self._release(taken, taken.ticket)
        self.rejected += 1

    def _release(self, taken: Taken, ticket: int) -> None:
        self._move_taken(taken, taken.slot.moved(EMPTY, ticket=ticket))

    def _move_taken(self, taken: Taken, to: Slot) -> None:
        if not self._table.move(taken.slot, to):
            raise RuntimeError(
                f"candidate queue: ticket {taken.ticket} is not held by rank {self.rank} any more"
            )

    # -- a generator that takes a candidate back

    def waiting(self) -> list[Taken]:
        """Return copies of the READY candidates in the order of their tickets, and move none of them.

        A candidate is left out if another rank moves it meanwhile, or if its record is torn or of another
        round.
        """
        copies = [(slot, self._table.copy_record(slot)) for slot in self.slots() if slot.state == READY]
        now = self.slots()
        still = [Taken(slot, row) for slot, row in copies if now[slot.index] == slot and fits(slot, row)]
        return sorted(still, key=lambda candidate: candidate.ticket)

    def still(self, slot: Slot) -> bool:
        """Return whether no rank has moved a slot since it was seen."""
        return self.slots()[slot.index] == slot

    def retract(self, ready: Slot) -> Taken | None:
        """Take back the candidate of a slot that was seen READY, before the trainer takes it.

        The slot is then this rank's, to fill again or to give up. Return None if the trainer or another
        generator was faster.
        """
        if ready.state != READY:
            return None
        mine = ready.moved(FILLING, owner=self.rank)
        return Taken(mine, self._table.read_record(ready)) if self._table.move(ready, mine) else None

    # -- the window

    def close(self) -> None:
        """Free the window of a queue group's queues with the first of them. Collective."""
        if self._table.first:
            self._table.window.free()
