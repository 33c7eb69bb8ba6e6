# SPDX-License-Identifier: Apache-2.0
"""The slots of a candidate queue in a window: one 64-bit word each, and a place for a record per rank.

Ticket, version, owner and state are one word, which only MPI's compare-and-swap changes. Each rank of the
queue group has its own place for the record of each slot. A rank that was wrongly thought dead therefore
overwrites nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aiperf_mpi.parallel.shared.window import HostedWindow
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.footprint import WORD
from aiperf_mpi.trials.record import RECORD_DTYPE, RecordError

EMPTY, FILLING, READY, TAKEN = range(4)

# Bits of a word, from the lowest: state 4, owner 12 (rank in the queue group), version 24, ticket 24.
_OWNER, _VERSION, _TICKET = 4, 16, 40
OWNERS, _VERSIONS, _TICKETS = 1 << 12, 1 << 24, 1 << 24


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot as one rank has seen it or holds it. A swap from `word` fails once another rank has moved it."""

    index: int
    word: int

    @property
    def state(self) -> int:
        """EMPTY, FILLING, READY or TAKEN."""
        return self.word & 0xF

    @property
    def owner(self) -> int:
        """Rank in the queue group that fills, filled or took it."""
        return self.word >> _OWNER & OWNERS - 1

    @property
    def version(self) -> int:
        """Number of transitions so far, modulo 2**24."""
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


class SlotTable:
    """The slots of one queue, as one rank of the queue group reaches them.

    Arguments:
        window: of the queue group's queues.
        offset: byte in the window at which this queue's slots begin.
        rank, ranks: this rank in the queue group, and the size of the group.
        depth: slots of the queue.
    """

    def __init__(self, window: HostedWindow, offset: int, rank: int, ranks: int, depth: int) -> None:
        self.window, self.rank, self.depth = window, rank, depth
        self._offset, self._ranks = offset, ranks

    @property
    def first(self) -> bool:
        """Whether this is the first queue in its window."""
        return self._offset == 0

    def read(self) -> tuple[Slot, ...]:
        """Return all slots as they are now."""
        words = self.window.words(self._offset, self.depth).tolist()
        return tuple(Slot(index, word) for index, word in enumerate(words))

    def move(self, slot: Slot, to: Slot) -> bool:
        """Change a slot's word to that of `to`; return False if another rank has moved it."""
        if to.ticket >= _TICKETS:
            raise OverflowError(f"candidate queue: ticket {to.ticket} is beyond {_TICKETS - 1}")
        offset = self._offset + slot.index * WORD
        return self.window.compare_and_swap(offset, slot.word, to.word) == slot.word

    def write_first_tickets(self, first: int) -> None:
        """Give the slots their first tickets, from `first` on (on one rank)."""
        for index in range(self.depth):
            self.move(Slot(index, 0), Slot(index, first + index << _TICKET))

    def place(self, slot: Slot) -> int:
        """Return the byte in the window at which the record of a slot's owner begins."""
        records = self._offset + self.depth * WORD
        return records + (slot.index * self._ranks + slot.owner) * RECORD_DTYPE.itemsize

    def write_record(self, slot: Slot, record: np.void) -> None:
        """Write the record of a slot that this rank owns."""
        row = np.empty(1, RECORD_DTYPE)
        row[0] = record
        self.window.put(self.place(slot), row)
        self.window.flush()

    def copy_record(self, slot: Slot) -> np.void:
        """Return the record of a slot's owner, which may be torn or of another round."""
        row = np.empty(1, RECORD_DTYPE)
        self.window.get(self.place(slot), row)
        self.window.flush()
        return row[0]

    def read_record(self, slot: Slot) -> np.void:
        """Return the record of a slot's owner. Raises RecordError if it is torn or of another round."""
        record = self.copy_record(slot)
        if not fits(slot, record):
            raise RecordError(
                f"candidate queue: the record of ticket {slot.ticket} from rank {slot.owner} of the queue "
                "group is torn or of another round"
            )
        return record


def fits(slot: Slot, record: np.void) -> bool:
    """Return whether a record is whole, and of the round that the slot's ticket names."""
    return rec.check(record) and int(record["round"]) == slot.ticket
