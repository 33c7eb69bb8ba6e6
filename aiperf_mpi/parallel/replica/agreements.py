# SPDX-License-Identifier: Apache-2.0
"""Agreements of a replica's trainers next to their steps: on the next candidate, and on its preparation.

Each trainer posts a value when it has got so far, and tests for the result between its steps. All post the
same sequence: the result of one agreement decides which one comes next, never the time at which it arrives.
"""

from __future__ import annotations

import numpy as np

from aiperf_mpi.parallel.launch.collective import start_agreement, wait
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.training.lockstep import BROKEN
from aiperf_mpi.trials.record import RECORD_DTYPE


class PendingAgreement:
    """An agreement that may not be complete yet; `value` and `record` are valid once `done` is true."""

    def __init__(self, comm: MPI.Intracomm | None, value: int, record: np.void | None) -> None:
        mine = np.zeros(1 + RECORD_DTYPE.itemsize, np.uint8)
        mine[0] = value
        if record is not None:
            mine[1:] = np.frombuffer(record.tobytes(), np.uint8)
        self._started = None if comm is None else start_agreement(comm, mine)
        self._agreed = mine if self._started is None else self._started.agreed

    @property
    def request(self) -> MPI.Request | None:
        """What completes it; None for a replica of one."""
        return None if self._started is None else self._started.request

    def done(self) -> bool:
        """Return whether all trainers have posted theirs."""
        return self.request is None or bool(self.request.Test())

    @property
    def value(self) -> int:
        """The highest value of all trainers."""
        return int(self._agreed[0])

    @property
    def record(self) -> np.void:
        """The record of the trainer that posted one.

        The bytes of the others are zeros, so the highest bytes are those of this record.
        """
        return np.frombuffer(self._agreed[1:].tobytes(), RECORD_DTYPE)[0]


class Agreements:
    """The agreements of a replica's trainers, on a communicator of their own.

    The agreements of the steps (`Team.agree`) may overtake them.

    Arguments:
        comm: the replica's trainers; None for a replica of one. Collective over it.
    """

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        self._comm = None if comm is None else comm.Dup()
        self._posted = 0
        self._last: PendingAgreement | None = None

    def post(self, value: int, record: np.void | None = None) -> PendingAgreement:
        """Start an agreement on a value of `training.lockstep`; the agreement before must be done.

        The trainer that has a candidate adds its record.
        """
        self._posted += 1
        self._last = PendingAgreement(self._comm, value, record)
        return self._last

    def settle(self, team: Team) -> None:
        """Complete the agreements that other trainers still wait for, when the run ends. Collective over the
        replica."""
        most = team.agree(self._posted)
        pending = [] if self._last is None else [self._last]
        while self._posted < most:
            pending.append(self.post(BROKEN))
        for agreement in pending:
            if agreement.request is not None:
                wait(agreement.request)
