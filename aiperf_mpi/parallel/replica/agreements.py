# SPDX-License-Identifier: Apache-2.0
"""What the trainers of a replica agree on while they train: the next candidate, and how far all have prepared
it.

Each of them posts its word when it has got so far, and looks for the others' between its steps. All post the
same sequence: what comes next is decided by what was agreed on, never by when one has heard of it.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from aiperf_mpi.parallel.launch.job import wait
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.trials.record import RECORD_DTYPE

#: Words, the highest of which holds for all: it goes on; it is tried again when nothing trains beside it; it
#: fails.
WELL, AGAIN, FAILS = range(3)


class PendingAgreement:
    """A word under way. `word` and `record` are those of all, once `done` has said so."""

    def __init__(self, comm: MPI.Intracomm | None, word: int, record: np.void | None) -> None:
        mine = np.zeros(1 + RECORD_DTYPE.itemsize, np.uint8)
        mine[0] = word
        if record is not None:
            mine[1:] = np.frombuffer(record.tobytes(), np.uint8)
        self._mine, self._all = mine, mine.copy()
        self.request = (
            None
            if comm is None
            else comm.Iallreduce([mine, mine.size, MPI.UINT8_T], [self._all, mine.size, MPI.UINT8_T], MPI.MAX)
        )

    def done(self) -> bool:
        """Whether all have said theirs."""
        return self.request is None or bool(self.request.Test())

    @property
    def word(self) -> int:
        """The highest word of all."""
        return int(self._all[0])

    @property
    def record(self) -> np.void:
        """The record of the one that gave one (the others' bytes are zeros, so the highest bytes are its
        own)."""
        return np.frombuffer(self._all[1:].tobytes(), RECORD_DTYPE)[0]


class Agreements:
    """The words of a replica's trainers, on a communicator of their own: the steps' agreements may pass them.

    Arguments:
        comm: the replica's trainers; None for a replica of one. Collective over it.
    """

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        self._comm = None if comm is None else comm.Dup()
        self._posted = 0
        self._last: PendingAgreement | None = None

    def post(self, word: int, record: np.void | None = None) -> PendingAgreement:
        """Say a word, and give a record if this is the one that has it; the word before must be done."""
        self._posted += 1
        self._last = PendingAgreement(self._comm, word, record)
        return self._last

    def settle(self, team: Team) -> None:
        """Say what the others still wait for, whatever it is, as nobody goes on. Collective over the
        replica."""
        most = team.agree(self._posted)
        last = [] if self._last is None else [self._last]
        while self._posted < most:
            last.append(self.post(FAILS))
        for asked in last:
            if asked.request is not None:
                wait(asked.request)
