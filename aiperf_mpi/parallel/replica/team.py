# SPDX-License-Identifier: Apache-2.0
"""The trainers of one replica, which train each candidate together by the same steps.

The first trainer leads: it takes candidates from the queue, passes them on (see `agreements`), sends the
rows, and writes the weights. The others prepare the same candidate, and take part in each step.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

import numpy as np

from aiperf_mpi.parallel.launch.collective import agree, wait
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.training.lockstep import FailedElsewhere, Stuck

#: Seconds for which an agreement is tested without a pause. That of a step takes microseconds; a trainer that
#: waits for longer waits for a late process.
SPIN_SECONDS = 2e-4

#: Bytes of an error's text that the other trainers receive.
_TEXT = 512


class Team:
    """A replica's trainers as one of them sees them.

    Arguments:
        comm: the replica's trainers, the first one as rank 0; None for a replica of one.
        timer: books the time for which a trainer waits for another one as communication; None books nothing.
    """

    def __init__(self, comm: MPI.Intracomm | None, timer: PhaseTimer | None = None) -> None:
        self._comm, self._timer = comm, timer
        self.size = 1 if comm is None else comm.size
        self.rank = 0 if comm is None else comm.rank

    @property
    def leads(self) -> bool:
        """Whether this is the replica's first trainer."""
        return self.rank == 0

    def agree(self, value: int) -> int:
        """Return the highest value of all trainers (see `training.lockstep`). Collective over the replica."""
        if self._comm is None:
            return value
        return int(agree(self._comm, np.array([value], np.int64), wait=self._wait)[0])

    def _wait(self, request: MPI.Request) -> None:
        """Test for SPIN_SECONDS without a pause, then test and sleep, and book that time."""
        until = time.perf_counter() + SPIN_SECONDS
        while not (there := request.Test()) and time.perf_counter() <= until:
            pass
        if not there:
            with self._timer("communicate") if self._timer is not None else nullcontext():
                wait(request)

    def cause(self, error: Exception) -> str:
        """Return why a trial failed on all trainers: the error of the first trainer with one of its own.

        Collective over the replica.
        """
        text = str(error) if isinstance(error, Stuck) else f"{type(error).__name__}: {error}"
        if self._comm is None:
            return text
        own = "" if isinstance(error, FailedElsewhere) else text
        mine = np.zeros(_TEXT, np.uint8)
        data = np.frombuffer(own.encode(errors="replace")[:_TEXT], np.uint8)
        mine[: len(data)] = data
        every = np.zeros((self.size, _TEXT), np.uint8)
        wait(self._comm.Iallgather(mine, every))
        texts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in every]
        return next((other for other in texts if other), text)
