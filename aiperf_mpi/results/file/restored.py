# SPDX-License-Identifier: Apache-2.0
"""What a segment of a run begins with: history, claims, queues and weights of the segments before it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aiperf_mpi.results.file.segments import Continuation


@dataclass(frozen=True)
class Restored:
    """What the next segment begins with.

    Attributes:
        segments: segments before it.
        taken: what it takes over of the journal.
        slots: length of the history.
        records: the history's records by slot; a slot without one was abandoned.
        added: records that come next: outcomes that the history lacks, and candidates that are dropped.
        keys: of all candidates that no other may have.
        tickets: of each replica that was there before, the first round that is not used up.
        waiting: trials (slots) of each replica that its queue begins with.
        weights: trials of each replica whose weights are kept, with their errors, best first.
        best: trial with the lowest validation error of the run, and the error; (-1, inf) without one.
    """

    segments: int
    taken: Continuation
    slots: int = 0
    records: Mapping[int, np.void] = field(default_factory=dict)
    added: tuple[np.void, ...] = ()
    keys: tuple[int, ...] = ()
    tickets: Mapping[int, int] = field(default_factory=dict)
    waiting: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    weights: Mapping[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    best: tuple[int, float] = (-1, math.inf)

    def to_json(self) -> str:
        """Return what all ranks need: everything but records and keys, which rank 0 alone has."""
        shared = {name: list(getattr(self, name).items()) for name in _BY_REPLICA}
        own = {"segments": self.segments, "taken": self.taken.to_dict(), "slots": self.slots}
        return json.dumps({**own, **shared, "best": self.best})

    @staticmethod
    def from_json(text: str) -> Restored:
        """Return what `to_json` described."""
        data = json.loads(text)
        trial, error = data["best"]
        return Restored(
            data["segments"],
            Continuation.from_dict(data["taken"]),
            data["slots"],
            tickets=dict(data["tickets"]),
            waiting={replica: tuple(trials) for replica, trials in data["waiting"]},
            weights={replica: tuple(map(tuple, kept)) for replica, kept in data["weights"]},
            best=(int(trial), float(error)),
        )


#: What a new run begins with.
NEW = Restored(0, Continuation(0.0))

#: Attributes of Restored that have an entry for each replica.
_BY_REPLICA = ("tickets", "waiting", "weights")
