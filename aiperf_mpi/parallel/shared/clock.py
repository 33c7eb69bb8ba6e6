# SPDX-License-Identifier: Apache-2.0
"""One time for all ranks: seconds since core start on rank 0's clock.

Each rank has a monotonic clock with its own zero. Collectives bound its offset to rank 0's clock. A reading
of rank 0 before a broadcast is older than the receiver's reading after it. A rank's reading before a barrier
is older than rank 0's reading after it. The offset is between the tightest of several bounds on either side
(Cristian, 1989).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.parallel.launch.mpi import MPI

Clock = Callable[[], float]

#: Repetitions, of which the best counts; on a rank that shares its core most are late.
ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Offset:
    """This rank's clock minus rank 0's clock, in seconds, and the bound of its error."""

    seconds: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class CoreClock:
    """Seconds since core start, from this rank's clock.

    Attributes:
        clock: this rank's clock.
        origin: its reading at core start.
        offset: of this clock to rank 0's, measured when the core time started.
    """

    clock: Clock
    origin: float
    offset: Offset = Offset(0.0, 0.0)

    def at(self, reading: float) -> float:
        """Return the core seconds of a reading of this rank's clock."""
        return reading - self.origin

    def now(self) -> float:
        """Return the core seconds of the present."""
        return self.clock() - self.origin


def measure_offset(comm: MPI.Intracomm, clock: Clock = time.monotonic, rounds: int = ROUNDS) -> Offset:
    """Measure the offset of this rank's `clock` to that of rank 0 of `comm`. Collective."""
    low, high = -np.inf, np.inf
    stamp = np.zeros(1)
    for _ in range(rounds):
        # Down: all ranks receive a reading of rank 0, which is older than their own.
        comm.Barrier()
        stamp[0] = clock()
        comm.Bcast([stamp, 1, MPI.DOUBLE], root=0)
        high = min(high, clock() - stamp[0])

        # Up: rank 0 leaves the barrier after all ranks have entered it.
        entered = clock()
        comm.Barrier()
        stamp[0] = clock()
        comm.Bcast([stamp, 1, MPI.DOUBLE], root=0)
        low = max(low, entered - stamp[0])
    return Offset(0.0, 0.0) if comm.rank == 0 else Offset(float(low + high) / 2, float(high - low) / 2)


def core_start(
    comm: MPI.Intracomm, offset: Offset, clock: Clock = time.monotonic, begun: float = 0.0
) -> CoreClock:
    """Start the core clock of every rank: rank 0's reading after a barrier of all ranks is core second
    `begun`, which is 0 unless a run goes on. Collective."""
    comm.Barrier()
    origin = np.array([clock() - begun])
    comm.Bcast([origin, 1, MPI.DOUBLE], root=0)
    return CoreClock(clock, float(origin[0]) + offset.seconds, offset)
