# SPDX-License-Identifier: Apache-2.0
"""What the processes of a replica say to one another before each step, so that all take it or none does.

A step has collectives in it: a process that left its training alone would let the devices of the others wait
forever.
"""

from __future__ import annotations

from collections.abc import Callable

#: Values that the processes of a replica agree on; the highest holds for all. Go on with the step or the
#: preparation; prepare again when no trial trains; end because the run stops, the time is over, or the trial
#: has failed.
GO, AGAIN, STOP, LATE, BROKEN = range(5)

#: Take this process's value, return the highest of its replica's; every process calls it equally often.
Agree = Callable[[int], int]


class FailedElsewhere(RuntimeError):
    """Another process of the replica failed, and says why."""


class Stranded(RuntimeError):
    """A step failed on this process after all had agreed on it: the others' devices wait for it, so the run
    ends."""


def alone(word: int) -> int:
    """The agreement of a replica of one process."""
    return word
