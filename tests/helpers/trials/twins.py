# SPDX-License-Identifier: Apache-2.0
"""The history log and the table of claims in one process's memory; reference for the window versions."""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np

from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.record import RECORD_DTYPE, SUMMARY_DTYPE


class ClaimTable(Protocol):
    """Keys of candidates; each key is held by at most one process."""

    def claim(self, key: int) -> bool:
        """Claim a non-zero key. Return True to exactly one caller until the key is released.

        Raise HistoryFull if the table is full.
        """

    def release(self, key: int) -> None:
        """Release a claimed key, so that it can be claimed again.

        Raise KeyError if it is not claimed.
        """


_EMPTY, _COMMITTED, _ABANDONED = range(3)


class _Storage:
    """The slots that all readers of an ArrayHistory share."""

    def __init__(self, capacity: int) -> None:
        self.records = np.zeros(capacity, RECORD_DTYPE)
        self.summaries = np.zeros(capacity, SUMMARY_DTYPE)
        self.states = np.full(capacity, _EMPTY, np.uint8)
        self.reserved = 0
        self.lock = threading.Lock()


class ArrayHistory:
    """A HistoryLog in one process's memory, thread-safe.

    Arguments:
        capacity: number of slots of the log.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"history: capacity is {capacity}, but must be at least 1")
        self._storage = _Storage(capacity)
        self._visible = 0

    def reader(self) -> ArrayHistory:
        """Return another view of the same log, which has read no row yet."""
        other = object.__new__(ArrayHistory)
        other._storage, other._visible = self._storage, 0
        return other

    @property
    def capacity(self) -> int:
        """Number of slots of the log."""
        return len(self._storage.states)

    def reserve(self) -> int:
        """Reserve the next slot and return it.

        Until it is committed or abandoned, no reader sees it or any later one.
        """
        with self._storage.lock:
            if self._storage.reserved == self.capacity:
                raise HistoryFull(
                    f"history: all {self.capacity} slots are taken; raise parallel.history_capacity"
                )
            self._storage.reserved += 1
            return self._storage.reserved - 1

    def commit(self, slot: int, record: np.void) -> bool:
        """Fill a reserved slot. Return False if it was abandoned meanwhile.

        Raise ValueError for an unsealed record.
        """
        if not rec.check(record):
            raise ValueError(f"history: the record for slot {slot} is not sealed, or torn")
        with self._storage.lock:
            if not self._settle(slot, _COMMITTED):
                return False
            self._storage.records[slot] = record
            self._storage.summaries[slot] = rec.summarise(record)
            return True

    def abandon(self, slot: int) -> bool:
        """Give up the reserved slot of a dead writer. Return False if it was committed meanwhile."""
        with self._storage.lock:
            if not self._settle(slot, _ABANDONED):
                return False
            self._storage.summaries[slot] = rec.abandoned_summary()
            return True

    def _settle(self, slot: int, state: int) -> bool:
        if not 0 <= slot < self._storage.reserved:
            raise IndexError(f"history: slot {slot} was never reserved ({self._storage.reserved} are)")
        if self._storage.states[slot] != _EMPTY:
            return False
        self._storage.states[slot] = state
        return True

    def append(self, record: np.void) -> int:
        """Reserve a slot and commit a sealed record in it."""
        if not rec.check(record):
            raise ValueError("history: a record to append is not sealed, or torn")
        slot = self.reserve()
        self.commit(slot, record)
        return slot

    def refresh(self) -> int:
        """Make rows visible up to the first slot that is neither committed nor abandoned; return their
        number."""
        with self._storage.lock:
            states = self._storage.states[self._visible : self._storage.reserved]
            open_slots = np.flatnonzero(states == _EMPTY)
            new = int(open_slots[0]) if len(open_slots) else len(states)
        self._visible += new
        return new

    def __len__(self) -> int:
        return self._visible

    def summaries(self) -> np.ndarray:
        """Return the visible rows, read-only."""
        view = self._storage.summaries[: self._visible]
        view.flags.writeable = False
        return view

    def record(self, slot: int) -> np.void:
        """Return a copy of the record of a visible slot."""
        if not 0 <= slot < self._visible:
            raise IndexError(f"history: slot {slot} is not visible ({self._visible} rows are)")
        if self._storage.states[slot] == _ABANDONED:
            raise KeyError(f"history: slot {slot} was abandoned")
        return self._storage.records[slot].copy()


class ArrayClaims:
    """A ClaimTable in one process's memory, thread-safe. A released key keeps its place in the table.

    Arguments:
        capacity: number of different keys that the table can hold.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"claims: capacity is {capacity}, but must be at least 1")
        self.capacity = capacity
        self._claimed: dict[int, bool] = {}
        self._lock = threading.Lock()

    def claim(self, key: int) -> bool:
        """Claim a non-zero key. Return True to one caller."""
        if not 0 < key < 1 << 64:
            raise ValueError(f"claims: key {key} is not a positive 64-bit number")
        with self._lock:
            if self._claimed.get(key, False):
                return False
            if key not in self._claimed and len(self._claimed) == self.capacity:
                raise HistoryFull(
                    f"claims: all {self.capacity} places are taken; raise parallel.history_capacity"
                )
            self._claimed[key] = True
            return True

    def release(self, key: int) -> None:
        """Release a claimed key."""
        with self._lock:
            if not self._claimed.get(key, False):
                raise KeyError(f"claims: key {key:#x} is not claimed")
            self._claimed[key] = False
