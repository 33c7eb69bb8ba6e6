# SPDX-License-Identifier: Apache-2.0
"""The memory of the history on rank 0: the counter of slots, and each slot's word, summary and record.

Rank 0 reads its own memory. Other ranks read and write it by one-sided operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.shared.window import HostedWindow
from aiperf_mpi.trials.footprint import WORD, LogLayout
from aiperf_mpi.trials.record import RECORD_DTYPE, SUMMARY_DTYPE

#: Values of a slot's word: open until its writer commits it, or rank 0 closes it for a dead writer.
OPEN, COMMITTED, CLOSED = range(3)


class LogWindow:
    """The memory of the history, as one rank reaches it; made and freed by all ranks of `comm` together.

    Arguments:
        comm: COMM_WORLD, or COMM_SELF; the memory is on its rank 0.
        capacity: slots of the log.

    Attributes:
        fetched, bytes: rows that this rank has read, and bytes that it has moved to read and to write.
    """

    def __init__(self, comm: MPI.Intracomm, capacity: int) -> None:
        self.rank, self._at = comm.rank, LogLayout(capacity)
        self._window = HostedWindow(comm, self._at.size)
        self.fetched = self.bytes = 0
        if self._window.memory is not None and comm.rank == 0:
            memory, at = self._window.memory, self._at
            self._local_counter = memory[at.counter : at.counter + WORD].view(np.uint64)
            self._local_words = memory[at.words : at.summaries].view(np.uint64)
            self._local_summaries = memory[at.summaries : at.records].view(SUMMARY_DTYPE)
            self._local_records = memory[at.records : at.size].view(RECORD_DTYPE)

    # -- writing

    def draw(self) -> int:
        """Draw the next slot. It may be one beyond the capacity."""
        return self._window.fetch_and_add(self._at.counter, 1)

    def write(self, slot: int, record: np.void, summary: np.void) -> None:
        """Write the record and the summary of a slot."""
        row, short = _array(record, RECORD_DTYPE), _array(summary, SUMMARY_DTYPE)
        self._window.put(self._at.records + slot * row.nbytes, row)
        self._window.put(self._at.summaries + slot * short.nbytes, short)
        self._window.flush()
        self.bytes += row.nbytes + short.nbytes + 2 * WORD

    def settle(self, slot: int, state: int) -> int:
        """Change the word of an open slot to `state`; return the word before. Only an open slot changes."""
        return self._window.compare_and_swap(self._at.words + slot * WORD, OPEN, state)

    # -- reading

    def drawn(self) -> int:
        """Return the number of slots drawn so far, on rank 0."""
        self._window.sync()
        return int(self._local_counter[0])

    def words(self, first: int, count: int) -> np.ndarray:
        """Read the words of `count` slots from `first` on (uint64)."""
        if self.rank == 0:
            self._window.sync()
            return self._local_words[first : first + count].copy()
        self.bytes += count * WORD
        return self._window.words(self._at.words + first * WORD, count)

    def summaries(self, first: int, count: int) -> np.ndarray:
        """Return the summaries of `count` slots from slot `first` on (SUMMARY_DTYPE)."""
        if self.rank == 0:
            self._window.sync()
            return self._local_summaries[first : first + count].copy()
        rows = np.empty(count, SUMMARY_DTYPE)
        self._window.get(self._at.summaries + first * SUMMARY_DTYPE.itemsize, rows)
        self._window.flush()
        self.bytes += rows.nbytes
        self.fetched += count
        return rows

    def records(self, slots: Sequence[int]) -> list[np.void]:
        """Read the records of several slots (RECORD_DTYPE), at the cost of one wait."""
        if self.rank == 0:
            self._window.sync()
            return [self._local_records[slot].copy() for slot in slots]
        rows = [np.empty(1, RECORD_DTYPE) for _ in slots]
        for slot, row in zip(slots, rows, strict=True):
            self._window.get(self._at.records + slot * row.nbytes, row)
        if rows:
            self._window.flush()
        self.fetched += len(rows)
        self.bytes += len(rows) * RECORD_DTYPE.itemsize
        return [row[0] for row in rows]

    def free(self) -> None:
        """Free the window. Collective."""
        if self.rank == 0:
            del self._local_counter, self._local_words, self._local_summaries, self._local_records
        self._window.free()


def _array(value: np.void, dtype: np.dtype) -> np.ndarray:
    """Copy one row into a contiguous array of its own."""
    row = np.empty(1, dtype)
    row[0] = value
    return row
