# SPDX-License-Identifier: Apache-2.0
"""The queue of candidates of a replica, in a window on its first trainer's node.

A queue of depth d is a ring of d slots, and slot s holds the tickets s+1, s+1+d, s+1+2d, ... one after the
other: a ticket (the round number of its candidate) belongs to one slot, and no two candidates can have the
    same. A generator
reserves the free slot with the lowest ticket and fills it; the trainer takes the tickets in order. A slot
moves on to its next ticket only when the trainer accepts; a rejected, dropped or lost candidate leaves the
ticket where it is, free to be filled again.

    EMPTY(t) -> FILLING(t) -> READY(t) -> TAKEN(t) -> EMPTY(t + d)   accepted
                    |             |           '-----> EMPTY(t)       rejected
                    '-> EMPTY(t)  '-> FILLING(t)                     given up, or its owner died; retracted

Ticket, version, owner and state are one 64-bit word, moved by MPI's compare-and-swap alone. Each rank of the
queue group has its own place for the payload of each slot, so a record is never overwritten by a rank that
was thought dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from aiperf_mpi.parallel.shared.window import HostedWindow
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.footprint import WORD, queue_bytes
from aiperf_mpi.trials.record import RECORD_DTYPE, RecordError

EMPTY, FILLING, READY, TAKEN = range(4)

STATES = ("empty", "filling", "ready", "taken")

#: Seconds that a generator may fill a slot without `renew` before the others take it for dead.
LEASE_SECONDS = 300.0

# Bits of a word, from the lowest: state 4, owner 12 (rank in the queue group), version 24, ticket 24.
_OWNER, _VERSION, _TICKET = 4, 16, 40
_OWNERS, _VERSIONS, _TICKETS = 1 << 12, 1 << 24, 1 << 24


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot as one rank saw or holds it; `word` proves that it still does."""

    index: int
    word: int

    @property
    def state(self) -> int:
        return self.word & 0xF

    @property
    def owner(self) -> int:
        """Rank in the queue group that fills, filled or took it."""
        return self.word >> _OWNER & _OWNERS - 1

    @property
    def version(self) -> int:
        return self.word >> _VERSION & _VERSIONS - 1

    @property
    def ticket(self) -> int:
        """Round number of its candidate, from 1."""
        return self.word >> _TICKET

    def moved(self, state: int, *, owner: int | None = None, ticket: int | None = None) -> Slot:
        """The slot after a transition. The version counter increases so that no word value repeats (ABA)."""
        owner = self.owner if owner is None else owner
        ticket = self.ticket if ticket is None else ticket
        version = (self.version + 1) % _VERSIONS
        return Slot(self.index, ticket << _TICKET | version << _VERSION | owner << _OWNER | state)


@dataclass(frozen=True, slots=True)
class Taken:
    """A candidate that the trainer took: its slot, and its sealed record with the trial id in
    `record["trial"]`."""

    slot: Slot
    record: np.void

    @property
    def ticket(self) -> int:
        return self.slot.ticket


def open_queues(
    queue_group: MPI.Intracomm,
    queues: int,
    depth: int,
    *,
    shared: bool = True,
    first_ticket: int = 1,
    lease: float = LEASE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[CandidateQueue, ...]:
    """The queues of a queue group's replicas, in the order of `Ranks.queue_group_replicas`, in one window of
    the queue group's first rank.

    Collective over `queue_group`, as closing them is: all ranks close all queues in their order.

    Arguments:
        queue_group: the trainers and generators of a node, or of all nodes that a replica spans.
        queues: replicas of the queue group.
        depth: candidates that wait for a trainer at most.
        shared: whether the queue group's ranks share memory; where not, an operation waits until the first
            rank enters MPI.
        first_ticket: where the rounds begin (later than 1 where a run goes on).
        lease: seconds after which a slot that is being filled is taken back.
        clock: seconds, of any origin.
    """
    if depth < 1 or queues < 1 or first_ticket < 1:
        raise ValueError(
            f"candidate queue: {queues} queues of depth {depth} from ticket {first_ticket}; all >= 1"
        )
    if queue_group.size > _OWNERS:
        raise ValueError(
            f"candidate queue: {queue_group.size} ranks in a queue group, but a word has room for {_OWNERS}"
        )
    each = queue_bytes(depth, queue_group.size)
    window = HostedWindow(queue_group, queues * each, shared)
    made = tuple(
        CandidateQueue(
            window, index * each, queue_group.rank, queue_group.size, depth, first_ticket, lease, clock
        )
        for index in range(queues)
    )

    # The first rank writes the first tickets; nobody may look before.
    if queue_group.rank == 0:
        for queue in made:
            queue.write_first_tickets()
    queue_group.Barrier()
    return made


class CandidateQueue:
    """One replica's queue, as one rank of its queue group sees it; made by `open_queues`.

    Attributes:
        published, taken, accepted, rejected, freed: moves that this rank has made.
    """

    def __init__(
        self,
        window: HostedWindow,
        offset: int,
        rank: int,
        ranks: int,
        depth: int,
        first_ticket: int,
        lease: float,
        clock: Callable[[], float],
    ) -> None:
        self.depth, self.rank = depth, rank
        self._window, self._offset, self._ranks = window, offset, ranks
        self._payload = offset + depth * WORD
        self._first, self._next = first_ticket, first_ticket
        self._lease, self._clock = lease, clock
        self._seen: dict[int, tuple[int, float]] = {}
        self.published = self.taken = self.accepted = self.rejected = self.freed = 0

    # -- both

    def slots(self) -> tuple[Slot, ...]:
        """All slots as they are now."""
        return tuple(
            Slot(i, word) for i, word in enumerate(self._window.words(self._offset, self.depth).tolist())
        )

    def count(self, state: int = READY) -> int:
        """Slots in a state."""
        return sum(slot.state == state for slot in self.slots())

    def free_stale(self) -> list[int]:
        """Free the slots whose word says FILLING and has not changed for longer than the lease, as this rank
        saw it; returns their tickets. Every `reserve` does this too."""
        now, freed = self._clock(), []
        for slot in self.slots():
            word, since = self._seen.get(slot.index, (None, now))
            if slot.state != FILLING or slot.word != word:
                self._seen[slot.index] = (slot.word, now)
            elif now - since > self._lease and self._move(slot, slot.moved(EMPTY)):
                self.freed += 1
                freed.append(slot.ticket)
        return freed

    # -- the generator's side

    def reserve(self) -> Slot | None:
        """The free slot with the lowest ticket, now FILLING by this rank; None if all are in use."""
        self.free_stale()
        for slot in sorted(self.slots(), key=lambda slot: slot.ticket):
            if slot.state == EMPTY:
                mine = slot.moved(FILLING, owner=self.rank)
                if self._move(slot, mine):
                    return mine
        return None

    def renew(self, mine: Slot) -> Slot | None:
        """Say that this rank is still filling its slot; returns the slot to go on with, None if it was taken
        away."""
        renewed = mine.moved(FILLING)
        return renewed if self._move(mine, renewed) else None

    def publish(self, mine: Slot, record: np.void, trial_id: int) -> bool:
        """Make the slot READY with a candidate; False if the slot was taken away, and the candidate must be
        dropped.

        `record` is the sealed PROPOSED record of trial `trial_id` (dtype RECORD_DTYPE), its round the slot's
        ticket; raises ValueError where it is not.
        """
        if not rec.check(record) or int(record["round"]) != mine.ticket:
            raise ValueError(
                f"candidate queue: the record for ticket {mine.ticket} is not sealed, or of round "
                f"{int(record['round'])}"
            )
        row = np.empty(1, RECORD_DTYPE)
        row[0] = record
        row["trial"] = trial_id
        row[0] = rec.seal(row[0])
        self._window.put(self._place(mine), row)
        self._window.flush()
        done = self._move(mine, mine.moved(READY))
        self.published += done
        return done

    def give_up(self, mine: Slot) -> bool:
        """Free the slot without a candidate; its ticket is filled by whoever reserves it next."""
        return self._move(mine, mine.moved(EMPTY))

    # -- the trainer's side

    @property
    def expected(self) -> int:
        """The ticket that `take` waits for, on the trainer."""
        return self._next

    def take(self) -> Taken | None:
        """The candidate of the next ticket in order, None while it is not ready. Follow it by `accept` or
        `reject`.

        Raises RecordError for a record that is torn or of another round, whose ticket is then filled again.
        """
        slot = self.slots()[(self._next - self._first) % self.depth]
        if slot.state != READY or slot.ticket != self._next:
            return None
        mine = slot.moved(TAKEN)
        if not self._move(slot, mine):
            return None
        self.taken += 1
        try:
            return Taken(mine, self._read(mine))
        except RecordError:
            self._move(mine, mine.moved(EMPTY))
            self.rejected += 1
            raise

    def accept(self, taken: Taken) -> None:
        """The candidate is good and its round used: the slot is free for the ticket `depth` further on."""
        self._release(taken, taken.ticket + self.depth)
        self._next = taken.ticket + 1
        self.accepted += 1

    def reject(self, taken: Taken) -> None:
        """The candidate is not trained; its ticket is filled again, and `take` waits for it."""
        self._release(taken, taken.ticket)
        self.rejected += 1

    # -- a generator that takes a candidate back

    def waiting(self) -> list[Taken]:
        """The READY candidates as they lie there, in the order of their tickets; none of them is moved, and
        one that another rank moves meanwhile is left out."""
        found = [(slot, self._copy(slot)) for slot in self.slots() if slot.state == READY]
        now = self.slots()
        still = [Taken(slot, row) for slot, row in found if now[slot.index] == slot and self._fits(slot, row)]
        return sorted(still, key=lambda candidate: candidate.ticket)

    def still(self, slot: Slot) -> bool:
        """Whether nobody has moved a slot since it was seen."""
        return self.slots()[slot.index] == slot

    def retract(self, ready: Slot) -> Taken | None:
        """Take the candidate of a slot that was seen READY back before the trainer has it; the slot is this
        rank's to fill again or to give up. None if anybody was faster, the trainer or another generator."""
        if ready.state != READY:
            return None
        mine = ready.moved(FILLING, owner=self.rank)
        return Taken(mine, self._read(ready)) if self._move(ready, mine) else None

    # -- the window

    def close(self) -> None:
        """Give the queue's memory back: the window of a queue group's queues is freed with the first of them.
        Collective."""
        if self._offset == 0:
            self._window.free()

    def write_first_tickets(self) -> None:
        """Give the slots their first tickets (by `open_queues`, on one rank)."""
        for index in range(self.depth):
            self._move(Slot(index, 0), Slot(index, self._first + index << _TICKET))

    def _move(self, slot: Slot, to: Slot) -> bool:
        if to.ticket >= _TICKETS:
            raise OverflowError(f"candidate queue: ticket {to.ticket} is beyond {_TICKETS - 1}")
        offset = self._offset + slot.index * WORD
        return self._window.compare_and_swap(offset, slot.word, to.word) == slot.word

    def _release(self, taken: Taken, ticket: int) -> None:
        if not self._move(taken.slot, taken.slot.moved(EMPTY, ticket=ticket)):
            raise RuntimeError(
                f"candidate queue: ticket {taken.ticket} is not held by rank {self.rank} any more"
            )

    def _place(self, slot: Slot) -> int:
        """Where the payload of a slot's owner lies."""
        return self._payload + (slot.index * self._ranks + slot.owner) * RECORD_DTYPE.itemsize

    def _copy(self, slot: Slot) -> np.void:
        row = np.empty(1, RECORD_DTYPE)
        self._window.get(self._place(slot), row)
        self._window.flush()
        return row[0]

    def _fits(self, slot: Slot, record: np.void) -> bool:
        return rec.check(record) and int(record["round"]) == slot.ticket

    def _read(self, slot: Slot) -> np.void:
        record = self._copy(slot)
        if not self._fits(slot, record):
            raise RecordError(
                f"candidate queue: the record of ticket {slot.ticket} from rank {slot.owner} of the queue "
                f"group "
                "is torn or of another round"
            )
        return record
