# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a run to drain.

A handler cannot run inside a blocked MPI call, so it only notes the signal. Rank 0's loop reads the note
every millisecond, and sends a stop message to the other ranks.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType

#: Batch systems send USR1 before the wall time and TERM at its end, a terminal sends INT. MPICH's launcher
#: relays all three, Open MPI's launcher only USR1.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


@dataclass
class Drain:
    """A note of the first signal: `signal` is its name, "" before any has come."""

    signal: str = ""

    def install(self) -> Drain:
        """Note the SIGNALS from now on instead of ending the process, and return this note.

        Rank 0 then stops all ranks in order.
        """
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
