# SPDX-License-Identifier: Apache-2.0
"""The history of the whole machine: an append-only log in a window on rank 0 (a `trials.log.HistoryLog`).

A writer draws a slot by fetch-and-add, puts record and summary, and commits by compare-and-swap of the slot's
word. Rank 0 alone closes the slot of a dead writer, by the same swap, so that one of the two wins. Readers
see the longest prefix without an open slot. They read 8 + 32 bytes of a row, one rank per node for all ranks
of the node, and whole records on demand: rank 0's bytes limit a large machine, not its operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.shared.log_window import CLOSED, COMMITTED, OPEN, LogWindow
from aiperf_mpi.parallel.shared.mirror import Mirror
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.lru import LruCache
from aiperf_mpi.trials.record import RecordError

#: Seconds that a writer may take between drawing a slot and committing it. It takes milliseconds. A rank that
#: the operating system stops for longer finds its slot closed, and appends again.
LEASE_SECONDS = 30.0

#: Rows that a refresh reads first. Each time that all of them were committed, it reads eight times as many.
_FIRST_ROWS, _MOST_ROWS = 64, 1 << 15

#: Seconds that a rank waits for the refresh of another rank (milliseconds long), and between its attempts.
_PATIENCE_SECONDS, _TURN_SECONDS = 0.25, 0.0002

#: Records that a rank keeps (1 MiB of them).
_CACHED_RECORDS = 4096


class WindowHistory:
    """The log of the whole machine, as one rank sees it; made and closed by all ranks of `comm` together.

    Arguments:
        comm: COMM_WORLD, or COMM_SELF; its rank 0 hosts the log.
        node: the ranks of this node that share one mirror; None where a rank reads for itself (rank 0, or
            ranks that do not share memory).
        capacity: slots of the log.
        lease: seconds after which rank 0 closes an open slot, and a node's rank takes over the mirror's lock.
        clock: seconds, of any origin.

    Attributes:
        appended: records that this rank has written.
        log: the memory of the log, which counts what this rank reads from it.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        node: MPI.Intracomm | None,
        capacity: int,
        lease: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"history: capacity is {capacity}, but must be at least 1")
        self.capacity, self.lease = capacity, lease
        self.rank, self._clock = comm.rank, clock
        self.log = LogWindow(comm, capacity)
        self._mirror = Mirror(capacity, node if comm.rank else None, lease, clock)
        self._visible = 0
        self._cache: LruCache[int, np.void] = LruCache(_CACHED_RECORDS)
        self._open_since: dict[int, float] = {}
        self.appended = 0

    # -- writing

    def append(self, record: np.void) -> int:
        """Write a sealed record; return its slot. Raises HistoryFull if no slot is left, ValueError for an
        unsealed record."""
        _require_sealed(record)
        while True:
            slot = self.reserve()
            if self.commit(slot, record):
                return slot

    def reserve(self) -> int:
        """Draw the next slot. No reader sees it or any later slot until it is committed or closed."""
        slot = self.log.draw()
        if slot >= self.capacity:
            raise HistoryFull(
                f"history: all {self.capacity} slots are taken; raise parallel.history_capacity"
            )
        return slot

    def commit(self, slot: int, record: np.void) -> bool:
        """Fill a drawn slot; return False if rank 0 has closed it. Raises ValueError for an unsealed
        record."""
        _require_sealed(record)
        self.log.write(slot, record, rec.summarise(record))
        if self.log.settle(slot, COMMITTED) != OPEN:
            return False
        self.appended += 1
        return True

    # -- rank 0's part

    @property
    def reserved(self) -> int:
        """On rank 0: the number of slots drawn so far."""
        self._require_host()
        return min(self.log.drawn(), self.capacity)

    def abandon(self, slot: int) -> bool:
        """On rank 0: close a drawn slot of a dead writer; return False if it has been committed."""
        if not 0 <= slot < self.reserved:
            raise IndexError(f"history: slot {slot} was never drawn ({self.reserved} are)")
        return self.log.settle(slot, CLOSED) == OPEN

    def abandon_stale(self, lease: float | None = None) -> list[int]:
        """On rank 0, now and then: close the slots that have been open for longer than the lease.

        Return these slots. A lease of 0, at the end of the run, closes all open slots.
        """
        lease = self.lease if lease is None else lease
        now, reserved = self._clock(), self.reserved
        self.refresh()
        words = self.log.words(self._visible, max(0, reserved - self._visible))
        slots = self._visible + np.flatnonzero(words == OPEN)
        self._open_since = {slot: self._open_since.get(slot, now) for slot in slots.tolist()}
        return [slot for slot, t in self._open_since.items() if now - t >= lease and self.abandon(slot)]

    def committed_since(self, first: int) -> list[tuple[int, np.void | None]]:
        """On rank 0: refresh, and return (slot, record) of the visible slots from `first` on.

        The record of an abandoned slot is None. Raises RecordError for a record that is torn.
        """
        self._require_host()
        self.refresh()
        slots = range(first, self._visible)
        committed = [slot for slot in slots if self._mirror.rows[slot]["kind"] != rec.ABANDONED]
        records = dict(zip(committed, self.records(committed), strict=True))
        return [(slot, records.get(slot)) for slot in slots]

    def _require_host(self) -> None:
        if self.rank:
            raise RuntimeError(f"history: only rank 0 maintains the log, this is rank {self.rank}")

    # -- reading

    def refresh(self) -> int:
        """Look for rows that have become visible; return how many are new.

        Wait while another rank of the node looks. If that rank is stuck, the rows that it has fetched count
        until its lease is over.
        """
        locked, deadline = self._mirror.lock(), self._clock() + _PATIENCE_SECONDS
        while not locked and self._clock() < deadline:
            time.sleep(_TURN_SECONDS)
            locked = self._mirror.lock()
        if locked:
            try:
                self._fetch(self._mirror.count())
            finally:
                self._mirror.unlock()
        before, self._visible = self._visible, max(self._visible, self._mirror.count())
        return self._visible - before

    def _fetch(self, first: int) -> None:
        """Bring the mirror up to date from slot `first` on: read the words, then the rows that are
        complete."""
        ask = _FIRST_ROWS
        while first < self.capacity:
            words = self.log.words(first, min(ask, self.capacity - first))
            open_slots = np.flatnonzero(words == OPEN)
            new = int(open_slots[0]) if len(open_slots) else len(words)
            if new:
                rows = self.log.summaries(first, new)
                rows[words[:new] == CLOSED] = rec.abandoned_summary()
                self._mirror.extend(first, rows)
                first += new
            if new < len(words):
                return
            ask = min(8 * ask, _MOST_ROWS)

    def __len__(self) -> int:
        return self._visible

    def summaries(self) -> np.ndarray:
        """Return the visible rows, one per slot (dtype SUMMARY_DTYPE, read-only); abandoned slots have kind
        ABANDONED."""
        view = self._mirror.rows[: self._visible]
        view.flags.writeable = False
        return view

    def record(self, slot: int) -> np.void:
        """Return the full record of a visible, committed slot.

        Raises IndexError for a slot that is not visible, KeyError for an abandoned one, RecordError for a
        torn record.
        """
        return self.records([slot])[0]

    def records(self, slots: Iterable[int]) -> list[np.void]:
        """Return the full records of several slots at the cost of one wait. Raises as `record` does."""
        slots = list(slots)
        for slot in slots:
            if not 0 <= slot < self._visible:
                raise IndexError(f"history: slot {slot} is not visible ({self._visible} rows are)")
            if self._mirror.rows[slot]["kind"] == rec.ABANDONED:
                raise KeyError(f"history: slot {slot} was abandoned")
        if self.rank == 0:
            return self._read(slots)

        kept = {slot: record for slot in slots if (record := self._cache.get(slot)) is not None}
        missing = [slot for slot in dict.fromkeys(slots) if slot not in kept]
        records = kept | dict(zip(missing, self._read(missing), strict=True))
        for slot in missing:
            self._cache.put(slot, records[slot])
        return [records[slot].copy() for slot in slots]

    def _read(self, slots: list[int]) -> list[np.void]:
        """Read records from rank 0's memory, and check that none is torn."""
        records = self.log.records(slots)
        for slot, record in zip(slots, records, strict=True):
            if not rec.check(record):
                raise RecordError(f"history: the record of slot {slot} is torn, as rank {self.rank} read it")
        return records

    def close(self) -> None:
        """Free the windows. Collective; the log cannot be used after it."""
        self._mirror.free()
        self.log.free()


def _require_sealed(record: np.void) -> None:
    if not rec.check(record):
        raise ValueError("history: a record to append is not sealed, or torn")


def restore(history: WindowHistory, slots: int, records: Mapping[int, np.void]) -> None:
    """On rank 0, before any rank appends: fill the first `slots` slots with the records of a run that is
    resumed; a slot without a record is closed. Raises HistoryFull if they do not fit."""
    for expected in range(slots):
        if (slot := history.reserve()) != expected:
            raise RuntimeError(f"history: slot {slot} instead of {expected}: it is not empty")
        if slot in records:
            history.commit(slot, records[slot])
        else:
            history.abandon(slot)
