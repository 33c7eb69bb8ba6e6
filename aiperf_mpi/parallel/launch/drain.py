# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a run to drain. A handler cannot run inside a blocked MPI call, so it only notes the
signal, and rank 0's loop, which looks every millisecond, tells the others."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType

#: Batch systems send USR1 before the wall time and TERM at it, a terminal INT; MPICH's launcher relays all
#: three, Open MPI's only USR1.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


@dataclass
class Drain:
    """`signal` is the name of the first signal that came, "" before."""

    signal: str = ""

    def install(self) -> Drain:
        """Note the signals from now on, on any rank: they must not kill a rank that rank 0 will stop in
        order."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
