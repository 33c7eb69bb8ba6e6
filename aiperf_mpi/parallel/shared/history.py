# SPDX-License-Identifier: Apache-2.0
"""The history as an append-only log in a window that rank 0 hosts: `search.history.HistoryLog` for the whole
machine.

A writer draws a slot by fetch-and-add, puts record and summary, and commits by compare-and-swap of the slot's
word. Rank 0 alone gives up the slot of a dead writer, by the same swap, so that one of the two wins. Readers
see the longest prefix without an open slot; they read 8 + 32 bytes of a row, one reader per node for all of
its ranks, and whole records on demand: rank 0's bytes are what limits a large machine, not its operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
from mpi4py import MPI

from aiperf_mpi.lru import LruCache
from aiperf_mpi.parallel.shared.window import HostedWindow
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.footprint import MIRROR_HEADER, WORD, LogLayout, mirror_bytes
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.record import RECORD_DTYPE, SUMMARY_DTYPE, RecordError

#: A slot's word: open until its writer commits it or rank 0 gives it up.
OPEN, COMMITTED, ABANDONED = range(3)

#: Seconds that a writer may take between drawing a slot and committing it. It takes milliseconds; but a rank
#: that the operating system stops comes back, finds its slot gone, and appends again.
LEASE_SECONDS = 30.0

#: Rows that a refresh asks for first; each time that all of them were there, it asks for eight times as many.
_FIRST_ROWS, _MOST_ROWS = 64, 1 << 15

#: A look takes at most some milliseconds: how long a rank waits for another one's, and between its attempts.
_PATIENCE_SECONDS, _TURN_SECONDS = 0.25, 0.0002

#: Records that a rank keeps (1 MiB of them).
_CACHED_RECORDS = 4096


class _Mirror:
    """The visible rows of a node in a window that its ranks share, or of one rank in its own memory.

    Rows never change once they are visible. Whoever holds the lock fetches for all; the others take what is
    there. A lock that one holder has kept for longer than the lease is taken over: both then write the same
    rows.
    """

    _LOCK, _COUNT = 0, 8

    def __init__(
        self, capacity: int, node: MPI.Intracomm | None, lease: float, clock: Callable[[], float]
    ) -> None:
        self._window = None if node is None else HostedWindow(node, mirror_bytes(capacity), shared=True)
        memory = np.zeros(mirror_bytes(capacity), np.uint8) if self._window is None else self._window.memory
        if memory is None:
            raise RuntimeError("history: a node's shared window has no memory")
        self._count = memory[self._COUNT : self._COUNT + WORD].view(np.uint64)
        self.rows = memory[MIRROR_HEADER:].view(SUMMARY_DTYPE)
        self._owner = 1 if node is None else node.rank + 1
        self._turn, self._lease, self._clock = 0, lease, clock
        self._seen, self._since = 0, clock()
        self._held = 0

    def lock(self) -> bool:
        """Whether this rank may fetch now."""
        if self._window is None:
            return True
        self._turn += 1
        mine = self._turn << 16 | self._owner
        found = self._window.compare_and_swap(self._LOCK, 0, mine)
        if found and found != self._seen:
            self._seen, self._since = found, self._clock()
        elif found and self._clock() - self._since > self._lease:
            found = 0 if self._window.compare_and_swap(self._LOCK, found, mine) == found else found
        self._held = 0 if found else mine
        return not found

    def unlock(self) -> None:
        if self._window is not None:
            self._window.compare_and_swap(self._LOCK, self._held, 0)

    def count(self) -> int:
        """Rows that are here."""
        if self._window is not None:
            self._window.sync()
        return int(self._count[0])

    def extend(self, first: int, rows: np.ndarray) -> None:
        """Add rows from `first` on; they are whole before the count says so."""
        self.rows[first : first + len(rows)] = rows
        if self._window is not None:
            self._window.sync()
        self._count[0] = max(first + len(rows), int(self._count[0]))
        if self._window is not None:
            self._window.sync()

    def free(self) -> None:
        del self._count, self.rows
        if self._window is not None:
            self._window.free()


class WindowHistory:
    """The log of the whole machine, as one rank sees it; made and closed by all ranks of `comm` together.

    Arguments:
        comm: COMM_WORLD, or COMM_SELF; its rank 0 hosts the log.
        node: the ranks of this node that share one mirror; None where a rank reads for itself (rank 0, or
            ranks that do not share memory).
        capacity: slots of the log.
        lease: seconds after which rank 0 gives up an open slot, and ranks a node's stuck reader.
        clock: seconds, of any origin.

    Attributes:
        appended, fetched, bytes: records written, rows and records read, and bytes moved for both.
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
        self._at = LogLayout(capacity)
        self._window = HostedWindow(comm, self._at.size)
        self._mirror = _Mirror(capacity, node if comm.rank else None, lease, clock)
        self._visible = 0
        self._cache: LruCache[int, np.void] = LruCache(_CACHED_RECORDS)
        self._open_since: dict[int, float] = {}
        self.appended = self.fetched = self.bytes = 0

        # Rank 0 reads its own memory: typed views of it.
        if self._window.memory is not None and comm.rank == 0:
            memory, at = self._window.memory, self._at
            self._local_counter = memory[at.counter : at.counter + WORD].view(np.uint64)
            self._local_words = memory[at.words : at.summaries].view(np.uint64)
            self._local_summaries = memory[at.summaries : at.records].view(SUMMARY_DTYPE)
            self._local_records = memory[at.records : at.size].view(RECORD_DTYPE)

    # -- writing

    def append(self, record: np.void) -> int:
        """Write a sealed record; returns its slot. Raises HistoryFull if there is none left, ValueError for
        an unsealed record."""
        _require_sealed(record)
        while True:
            slot = self.reserve()
            if self.commit(slot, record):
                return slot

    def reserve(self) -> int:
        """Draw the next slot; until it is committed or abandoned no reader sees it or any later one."""
        slot = self._window.fetch_and_add(self._at.counter, 1)
        if slot >= self.capacity:
            raise HistoryFull(
                f"history: all {self.capacity} slots are taken; raise parallel.history_capacity"
            )
        return slot

    def commit(self, slot: int, record: np.void) -> bool:
        """Fill a drawn slot; False if rank 0 gave it up meanwhile. Raises ValueError for an unsealed
        record."""
        _require_sealed(record)
        at = self._at
        row, summary = _array(record, RECORD_DTYPE), _array(rec.summarise(record), SUMMARY_DTYPE)
        self._window.put(at.records + slot * row.nbytes, row)
        self._window.put(at.summaries + slot * summary.nbytes, summary)
        self._window.flush()
        self.bytes += row.nbytes + summary.nbytes + 2 * WORD
        if self._settle(slot, COMMITTED) != OPEN:
            return False
        self.appended += 1
        return True

    def _settle(self, slot: int, state: int) -> int:
        return self._window.compare_and_swap(self._at.words + slot * WORD, OPEN, state)

    # -- rank 0's part

    @property
    def reserved(self) -> int:
        """On rank 0: slots drawn so far."""
        self._require_host()
        self._window.sync()
        return min(int(self._local_counter[0]), self.capacity)

    def abandon(self, slot: int) -> bool:
        """On rank 0: give up a drawn slot whose writer died; False if it was committed meanwhile."""
        if not 0 <= slot < self.reserved:
            raise IndexError(f"history: slot {slot} was never drawn ({self.reserved} are)")
        return self._settle(slot, ABANDONED) == OPEN

    def abandon_stale(self, lease: float | None = None) -> list[int]:
        """On rank 0, now and then: give up the slots that have been open for longer than the lease; returns
        them. With 0, at the end of the run, all that are open."""
        lease = self.lease if lease is None else lease
        now, reserved = self._clock(), self.reserved
        self.refresh()
        slots = self._visible + np.flatnonzero(self._local_words[self._visible : reserved] == OPEN)
        self._open_since = {slot: self._open_since.get(slot, now) for slot in slots.tolist()}
        return [slot for slot, t in self._open_since.items() if now - t >= lease and self.abandon(slot)]

    def committed_since(self, first: int) -> list[tuple[int, np.void | None]]:
        """On rank 0: (slot, record) of the visible slots from `first` on, after a refresh; None for abandoned
        ones. Raises RecordError for a record that is torn."""
        self._require_host()
        self.refresh()
        slots = range(first, self._visible)
        return [
            (s, None if self._mirror.rows[s]["kind"] == rec.ABANDONED else self._local_record(s))
            for s in slots
        ]

    def _require_host(self) -> None:
        if self.rank:
            raise RuntimeError(f"history: only rank 0 looks after the log, this is rank {self.rank}")

    def _local_record(self, slot: int) -> np.void:
        return _checked(self._local_records[slot].copy(), slot, self.rank)

    # -- reading

    def refresh(self) -> int:
        """Look for rows that have become visible; returns how many are new. Waits while another rank of the
        node looks; should that one be stuck, what it has fetched so far counts until its lease is over."""
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
        """Bring the mirror up to date: first the words, and only behind them the rows that they say are
        whole."""
        ask = _FIRST_ROWS
        while first < self.capacity:
            words = self._words(first, min(ask, self.capacity - first))
            open_slots = np.flatnonzero(words == OPEN)
            new = int(open_slots[0]) if len(open_slots) else len(words)
            if new:
                rows = self._summaries(first, new)
                rows[words[:new] == ABANDONED] = rec.abandoned_summary()
                self._mirror.extend(first, rows)
                first += new
            if new < len(words):
                return
            ask = min(8 * ask, _MOST_ROWS)

    def _words(self, first: int, count: int) -> np.ndarray:
        if self.rank == 0:
            self._window.sync()
            return self._local_words[first : first + count].copy()
        self.bytes += count * WORD
        return self._window.words(self._at.words + first * WORD, count)

    def _summaries(self, first: int, count: int) -> np.ndarray:
        if self.rank == 0:
            self._window.sync()
            return self._local_summaries[first : first + count].copy()
        rows = np.empty(count, SUMMARY_DTYPE)
        self._window.get(self._at.summaries + first * SUMMARY_DTYPE.itemsize, rows)
        self._window.flush()
        self.bytes += rows.nbytes
        self.fetched += count
        return rows

    def __len__(self) -> int:
        return self._visible

    def summaries(self) -> np.ndarray:
        """The visible rows (dtype SUMMARY_DTYPE, one per slot, read-only); abandoned slots have kind
        ABANDONED."""
        view = self._mirror.rows[: self._visible]
        view.flags.writeable = False
        return view

    def record(self, slot: int) -> np.void:
        """The full record of a visible, committed slot. Raises IndexError beyond it, KeyError if it was
        abandoned, RecordError if it is torn."""
        return self.records([slot])[0]

    def records(self, slots: Iterable[int]) -> list[np.void]:
        """The full records of several slots at the cost of one wait; raises as `record` does."""
        slots = list(slots)
        for slot in slots:
            if not 0 <= slot < self._visible:
                raise IndexError(f"history: slot {slot} is not visible ({self._visible} rows are)")
            if self._mirror.rows[slot]["kind"] == rec.ABANDONED:
                raise KeyError(f"history: slot {slot} was abandoned")
        if self.rank == 0:
            self._window.sync()
            return [self._local_record(slot) for slot in slots]

        records: dict[int, np.void] = {}
        for slot in slots:
            if (kept := self._cache.get(slot)) is not None:
                records[slot] = kept
        missing = {slot: np.empty(1, RECORD_DTYPE) for slot in slots if slot not in records}
        for slot, row in missing.items():
            self._window.get(self._at.records + slot * row.nbytes, row)
        if missing:
            self._window.flush()
        for slot, row in missing.items():
            records[slot] = _checked(row[0], slot, self.rank)
        self.fetched += len(missing)
        self.bytes += len(missing) * RECORD_DTYPE.itemsize

        for slot in missing:
            self._cache.put(slot, records[slot])
        return [records[slot].copy() for slot in slots]

    def close(self) -> None:
        """Free the windows. Collective; nothing of the log can be used any more."""
        self._mirror.free()
        if self.rank == 0:
            del self._local_counter, self._local_words, self._local_summaries, self._local_records
        self._window.free()


def _array(value: np.void, dtype: np.dtype) -> np.ndarray:
    """One row as a contiguous array of its own."""
    row = np.empty(1, dtype)
    row[0] = value
    return row


def _require_sealed(record: np.void) -> None:
    if not rec.check(record):
        raise ValueError("history: a record to append is not sealed, or torn")


def _checked(record: np.void, slot: int, rank: int) -> np.void:
    if not rec.check(record):
        raise RecordError(f"history: the record of slot {slot} is torn, as rank {rank} read it")
    return record
