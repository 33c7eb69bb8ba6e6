# SPDX-License-Identifier: Apache-2.0
"""Claims on candidates: an open-addressed table in rank 0's window.

A rank puts a key into the first free place of its probe sequence by compare-and-swap from 0, so that one rank
wins it. The key keeps this place for ever. A state word next to the key shows whether it was released; a
released key is claimed again by the same kind of swap.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.shared.window import HostedWindow
from aiperf_mpi.trials.footprint import CLAIM_BYTES, WORD, claims_bytes
from aiperf_mpi.trials.log import HistoryFull

_CLAIMED, _RELEASED = 0, 1

#: Multiplier that spreads keys over the table (2**64 over the golden ratio, Knuth volume 3, section 6.4).
_SPREAD = 0x9E3779B97F4A7C15


class WindowClaims:
    """The table of claims, as one rank sees it; made and closed by all ranks of `comm` together.

    Arguments:
        comm: COMM_WORLD, or COMM_SELF; its rank 0 hosts the table.
        capacity: different keys that the table can hold. A claim takes about 1/(1 - load) swaps, so it should
            be twice the expected number of keys.

    Attributes:
        claimed, refused, released, probes: successful and refused claims, releases, and swaps for all of
            them.
    """

    def __init__(self, comm: MPI.Intracomm, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"claims: capacity is {capacity}, but must be at least 1")
        self.capacity = capacity
        self._window = HostedWindow(comm, claims_bytes(capacity))
        self.claimed = self.refused = self.released = self.probes = 0

    def claim(self, key: int) -> bool:
        """Claim a non-zero key; return True to exactly one caller until it is released.

        Raises HistoryFull if the table is full.
        """
        if not 0 < key < 1 << 64:
            raise ValueError(f"claims: key {key} is not a positive 64-bit number")
        for place in self._places(key):
            present = self._swap(place * CLAIM_BYTES, 0, key)
            if present == 0:
                self.claimed += 1
                return True
            if present == key:
                won = self._swap(place * CLAIM_BYTES + WORD, _RELEASED, _CLAIMED) == _RELEASED
                self.claimed += won
                self.refused += not won
                return won
        raise HistoryFull(f"claims: all {self.capacity} places are taken; raise parallel.history_capacity")

    def release(self, key: int) -> None:
        """Release a claimed key, so that it can be claimed again. Raises KeyError if it is not claimed."""
        for place in self._places(key):
            # A swap of 0 for 0 reads the word and changes nothing.
            present = self._swap(place * CLAIM_BYTES, 0, 0)
            if present == key and self._swap(place * CLAIM_BYTES + WORD, _CLAIMED, _RELEASED) == _CLAIMED:
                self.released += 1
                return
            if present in (0, key):
                break
        raise KeyError(f"claims: key {key:#x} is not claimed")

    def close(self) -> None:
        """Free the window. Collective."""
        self._window.free()

    def _places(self, key: int) -> Iterator[int]:
        """Return all places of the table in the order in which a key probes them."""
        start = (key * _SPREAD & (1 << 64) - 1) * self.capacity >> 64
        return ((start + step) % self.capacity for step in range(self.capacity))

    def _swap(self, offset: int, expected: int, new: int) -> int:
        self.probes += 1
        return self._window.compare_and_swap(offset, expected, new)
