# SPDX-License-Identifier: Apache-2.0
"""Where a rank's time goes: a timer that is in at most one of nine phases at any moment.

Idle is a phase that the code enters, not wall time minus the rest. Unaccounted time is missing from the sum,
and a check of the sum against the wall time finds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: The phases of a rank's wall time, in the order of the result's columns.
PHASES = ("init", "data", "search", "compile", "train", "validate", "communicate", "io", "idle")


class PhaseTimer:
    """Seconds in each phase, on one thread.

    `with timer("train"):` enters a phase until the block ends. A phase inside another pauses the outer one,
    so that no moment counts twice.

    Arguments:
        clock: returns seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase: str | None = None
        self._since = clock()

    @property
    def phase(self) -> str | None:
        """The phase that time is counted in now; None outside of all."""
        return self._phase

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds in each of the nine phases up to now, including the current phase."""
        seconds = self._seconds.copy()
        if self._phase is not None:
            seconds[self._phase] += self._clock() - self._since
        return seconds

    def switch(self, phase: str | None) -> str | None:
        """Enter `phase` (None for no phase) and return the phase that was left.

        Raises ValueError for an unknown phase.
        """
        if phase is not None and phase not in self._seconds:
            raise ValueError(f"phase {phase!r} is not one of {', '.join(PHASES)}")
        now, left = self._clock(), self._phase
        if left is not None:
            self._seconds[left] += now - self._since
        self._phase, self._since = phase, now
        return left

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the block's time in `phase`, then return to the outer phase, also after an exception."""
        outer = self.switch(phase)
        try:
            yield
        finally:
            self.switch(outer)
