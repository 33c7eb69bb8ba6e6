# SPDX-License-Identifier: Apache-2.0
"""The present rate of the machine and of each replica, for the view: over the last seconds, by steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

#: Seconds over which the machine's present rate is taken, and between two of the states that are kept for it.
WINDOW, EVERY = 10.0, 1.0

#: Least seconds between the two messages that a replica's rate is taken from.
LEAST = 2.0


@dataclass
class PresentRate:
    """The rate of the last WINDOW seconds, from sums of operations that never decrease."""

    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque([(0.0, 0)]))
    last: tuple[float, int] = (0.0, 0)

    def add(self, t: float, operations: int) -> None:
        """Take the sum of operations at `t` (s)."""
        self.last = t, operations
        if t - self.marks[-1][0] >= EVERY:
            self.marks.append(self.last)
        while len(self.marks) > 1 and t - self.marks[1][0] >= WINDOW:
            self.marks.popleft()

    @property
    def value(self) -> float:
        """The rate in operations per second; 0 in the first moment."""
        (t, operations), (since, before) = self.last, self.marks[0]
        return max(0, operations - before) / (t - since) if t > since else 0.0


@dataclass
class ReplicaRate:
    """How fast a replica trains: by the steps of its epoch, or by its last whole epoch.

    Attributes:
        value: operations per second; None before it is known, and while the replica does not train.
    """

    value: float | None = None
    epoch: tuple[int, int] | None = None
    since: tuple[float, int] = (0.0, 0)

    def stop(self) -> None:
        """Forget the rate: the replica does not train."""
        self.value = self.epoch = None

    def step(self, epoch: tuple[int, int], t: float, operations: int) -> None:
        """Take the operations of an epoch (of a trial) at `t` (s)."""
        if epoch != self.epoch:
            self.epoch, self.since = epoch, (t, operations)
        elif t - self.since[0] >= LEAST:
            self.value = (operations - self.since[1]) / (t - self.since[0])
            self.since = t, operations

    def whole(self, operations: int, seconds: float) -> None:
        """Take a whole epoch: its operations, and its length in s."""
        if seconds > 0:
            self.value = operations / seconds
