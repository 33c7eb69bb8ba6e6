# SPDX-License-Identifier: Apache-2.0
"""One time for all ranks: seconds since core start on rank 0's clock.

Each rank has a monotonic clock with a zero of its own. Collectives bound its offset to rank 0's: what rank 0
read before a broadcast is older than what the receiver reads after it, and what a rank reads before a barrier
is older than what rank 0 reads after it. The tightest of several bounds on either side hold the offset
between them (Cristian, 1989).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

Clock = Callable[[], float]

#: Repetitions; the best of them counts, and a rank that shares its core loses most of them.
ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Offset:
    """This rank's clock minus rank 0's, in seconds, and the bound of its error."""

    seconds: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class CoreClock:
    """Seconds since core start: `at(reading)` of a reading of this rank's clock, `now()` of the present.

    `offset` is that of the clock to rank 0's, as it was measured when the core time started.
    """

    clock: Clock
    origin: float
    offset: Offset = Offset(0.0, 0.0)

    def at(self, reading: float) -> float:
        return reading - self.origin

    def now(self) -> float:
        return self.clock() - self.origin


def measure_offset(comm: MPI.Intracomm, clock: Clock = time.monotonic, rounds: int = ROUNDS) -> Offset:
    """The offset of this rank's `clock` to that of rank 0 of `comm`. Collective."""
    low, high = -np.inf, np.inf
    stamp = np.zeros(1)
    for _ in range(rounds):
        # Down: rank 0's reading travels to all; none can have it before it was read.
        comm.Barrier()
        stamp[0] = clock()
        comm.Bcast([stamp, 1, MPI.DOUBLE], root=0)
        high = min(high, clock() - stamp[0])

        # Up: rank 0 leaves the barrier after everybody has entered it.
        entered = clock()
        comm.Barrier()
        stamp[0] = clock()
        comm.Bcast([stamp, 1, MPI.DOUBLE], root=0)
        low = max(low, entered - stamp[0])
    return Offset(0.0, 0.0) if comm.rank == 0 else Offset(float(low + high) / 2, float(high - low) / 2)


def core_start(comm: MPI.Intracomm, offset: Offset, clock: Clock = time.monotonic) -> CoreClock:
    """The core clock of every rank: zero is rank 0's reading behind a barrier of all ranks. Collective."""
    comm.Barrier()
    origin = np.array([clock()])
    comm.Bcast([origin, 1, MPI.DOUBLE], root=0)
    return CoreClock(clock, float(origin[0]) + offset.seconds, offset)
