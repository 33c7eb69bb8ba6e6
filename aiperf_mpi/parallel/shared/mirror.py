# SPDX-License-Identifier: Apache-2.0
"""The copy of the history's visible summaries on a node, which all its ranks read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.shared.window import HostedWindow
from aiperf_mpi.trials.footprint import MIRROR_HEADER, WORD, mirror_bytes
from aiperf_mpi.trials.record import SUMMARY_DTYPE

#: Bytes at which the words of the lock and of the count of rows begin.
_LOCK, _COUNT = 0, 8


class Mirror:
    """The visible summaries, in a window that the node's ranks share, or in the memory of one rank.

    Rows never change once they are visible. The rank that holds the lock fetches rows for all ranks of the
    node; the others read what is there. A rank takes over a lock that another one has held for longer than
    the lease: both then write the same rows.

    Arguments:
        capacity: slots of the history.
        node: the ranks of the node; None where the mirror is this rank's own.
        lease: seconds after which a lock is taken over.
        clock: seconds, of any origin.

    Attributes:
        rows: one summary per slot (dtype SUMMARY_DTYPE), of which the first `count()` are valid.
    """

    def __init__(
        self, capacity: int, node: MPI.Intracomm | None, lease: float, clock: Callable[[], float]
    ) -> None:
        self._window = None if node is None else HostedWindow(node, mirror_bytes(capacity), shared=True)
        memory = np.zeros(mirror_bytes(capacity), np.uint8) if self._window is None else self._window.memory
        if memory is None:
            raise RuntimeError("history: a node's shared window has no memory")
        self._count = memory[_COUNT : _COUNT + WORD].view(np.uint64)
        self.rows = memory[MIRROR_HEADER:].view(SUMMARY_DTYPE)
        self._owner = 1 if node is None else node.rank + 1
        self._turn, self._lease, self._clock = 0, lease, clock
        self._seen, self._since = 0, clock()
        self._held = 0

    def lock(self) -> bool:
        """Try to get the lock; return whether this rank may fetch now."""
        if self._window is None:
            return True
        self._turn += 1
        mine = self._turn << 16 | self._owner
        holder = self._window.compare_and_swap(_LOCK, 0, mine)
        if holder and holder != self._seen:
            self._seen, self._since = holder, self._clock()
        elif holder and self._clock() - self._since > self._lease:
            holder = 0 if self._window.compare_and_swap(_LOCK, holder, mine) == holder else holder
        self._held = 0 if holder else mine
        return not holder

    def unlock(self) -> None:
        """Give the lock back, unless another rank has taken it over."""
        if self._window is not None:
            self._window.compare_and_swap(_LOCK, self._held, 0)

    def count(self) -> int:
        """Return the number of rows that are in the mirror."""
        if self._window is not None:
            self._window.sync()
        return int(self._count[0])

    def extend(self, first: int, rows: np.ndarray) -> None:
        """Add rows from index `first` on. They are complete before the count includes them."""
        self.rows[first : first + len(rows)] = rows
        if self._window is not None:
            self._window.sync()
        self._count[0] = max(first + len(rows), int(self._count[0]))
        if self._window is not None:
            self._window.sync()

    def free(self) -> None:
        """Free the window. Collective over the node."""
        del self._count, self.rows
        if self._window is not None:
            self._window.free()
