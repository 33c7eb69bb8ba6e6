# SPDX-License-Identifier: Apache-2.0
"""The agreement of a replica's processes before each step, so that all of them take the step or none does.

A step contains collectives: if one process left its training alone, the devices of the others would wait
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
    """Another process of the replica failed, and reports the error."""


class Stranded(RuntimeError):
    """A step failed on this process after all had agreed on it. The other processes' devices wait for it, so
    the run ends."""


class Stuck(RuntimeError):
    """Work on the devices makes no progress. It cannot be interrupted, so that its process is of no more use;
    the text begins with `stuck: `."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"stuck: {what} has not ended for {seconds:.0f} s")


def alone(value: int) -> int:
    """Return the value itself: the agreement of a replica of one process."""
    return value
