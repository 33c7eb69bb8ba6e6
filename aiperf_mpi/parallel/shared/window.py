# SPDX-License-Identifier: Apache-2.0
"""Memory of one rank that all ranks of a communicator read and change: the only module with one-sided calls.

MPI allocates the memory, as `Win.Create` waits for a busy target even on one node. Each rank holds one
standing shared lock without check, so that an operation is the operation and a flush: a lock per operation
waits for a busy target, and `Lock_all` sends a message to every rank. 64-bit words are changed by
compare-and-swap or by fetch-and-add, and each word always by the same of the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aiperf_mpi.parallel.launch.mpi import MPI

#: The rank, in its communicator, that has the memory of a window.
HOST = 0


def _word(value: int = 0) -> np.ndarray:
    return np.array([value], np.uint64)


def _bytes(memory: Any, size: int) -> np.ndarray:
    return np.frombuffer(memory, np.uint8, size)


class HostedWindow:
    """Zeroed memory of `size` bytes on rank 0 of `comm`; all ranks of `comm` make it and free it together.

    Arguments:
        comm: intracommunicator.
        size: bytes, the same on all ranks.
        shared: whether the ranks share a node; then `memory` is the same memory on all of them.

    Attributes:
        memory: the bytes (uint8[size]) on the host, and on all ranks where `shared`; elsewhere None. A rank
            calls `sync` before it reads, and after it has written.
    """

    def __init__(self, comm: MPI.Intracomm, size: int, shared: bool = False) -> None:
        self.size = size
        mine = size if comm.rank == HOST else 0
        allocate = MPI.Win.Allocate_shared if shared else MPI.Win.Allocate
        self._win = allocate(mine, 1, MPI.INFO_NULL, comm)
        self.memory: np.ndarray | None = None
        if shared:
            self.memory = _bytes(self._win.Shared_query(HOST)[0], size)
        elif comm.rank == HOST:
            self.memory = _bytes(self._win.tomemory(), size)

        # No rank may operate on the memory before it is zero.
        self._win.Lock(HOST, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
        if comm.rank == HOST and self.memory is not None:
            self.memory[:] = 0
            self._win.Sync()
        comm.Barrier()
        self._result, self._new, self._expected = _word(), _word(), _word()

    def sync(self) -> None:
        """Order this rank's loads and stores on `memory` with the operations of other ranks."""
        self._win.Sync()

    def compare_and_swap(self, offset: int, expected: int, new: int) -> int:
        """Put `new` into the word at byte `offset` if it is `expected`; return the word before."""
        self._expected[0], self._new[0] = expected, new
        self._win.Compare_and_swap(
            [self._new, 1, MPI.UINT64_T],
            [self._expected, 1, MPI.UINT64_T],
            [self._result, 1, MPI.UINT64_T],
            HOST,
            offset,
        )
        self._win.Flush(HOST)
        return int(self._result[0])

    def fetch_and_add(self, offset: int, value: int) -> int:
        """Add to the word at byte `offset`; return the word before."""
        self._new[0] = value
        self._win.Fetch_and_op(
            [self._new, 1, MPI.UINT64_T], [self._result, 1, MPI.UINT64_T], HOST, offset, MPI.SUM
        )
        self._win.Flush(HOST)
        return int(self._result[0])

    def words(self, offset: int, count: int) -> np.ndarray:
        """Return a copy of `count` words from byte `offset` on (uint64), each read atomically."""
        result = np.empty(count, np.uint64)
        nothing = np.zeros(count, np.uint64)
        self._win.Get_accumulate(
            [nothing, count, MPI.UINT64_T],
            [result, count, MPI.UINT64_T],
            HOST,
            [offset, count, MPI.UINT64_T],
            MPI.NO_OP,
        )
        self._win.Flush(HOST)
        return result

    def get(self, offset: int, into: np.ndarray) -> None:
        """Start to read from byte `offset` on into the contiguous, private array `into`.

        The array is complete after `flush`.

        MPICH aborts if the array is a shared window's own memory.
        """
        self._win.Get([into.view(np.uint8), into.nbytes, MPI.BYTE], HOST, [offset, into.nbytes, MPI.BYTE])

    def put(self, offset: int, data: np.ndarray) -> None:
        """Start to write the contiguous, private array `data` from byte `offset` on.

        Other ranks see it after `flush`.
        """
        self._win.Put([data.view(np.uint8), data.nbytes, MPI.BYTE], HOST, [offset, data.nbytes, MPI.BYTE])

    def flush(self) -> None:
        """Complete all operations that this rank has started."""
        self._win.Flush(HOST)

    def free(self) -> None:
        """Free the memory. Collective; views of `memory` must not be used after it."""
        self.memory = None
        self._win.Unlock(HOST)
        self._win.Free()
