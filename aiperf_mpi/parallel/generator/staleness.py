# SPDX-License-Identifier: Apache-2.0
"""Find stale candidates: those that wait in a queue, and were chosen when many fewer trials had finished.

A candidate that its trainer prepares ahead does not wait any more: it is TAKEN, and no generator replaces it.

A candidate knew the trials that had finished before its own record in the history. The few that finished
while it was chosen count as known, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aiperf_mpi.parallel.shared.queue import CandidateQueue, Taken
from aiperf_mpi.trials.record import OUTCOME, SUCCESSES
from aiperf_mpi.trials.view import START


def is_stale(known: int, finished: int, stale_after: float) -> bool:
    """Return whether a candidate that knew `known` finished trials is stale once `finished` have finished.

    The search learns nothing from fewer than START: a candidate that was chosen without it is stale as soon
    as so many have finished, and the others count as if they knew at least START.
    """
    return known < START <= finished or finished > stale_after * max(known, START)


def stalest(
    queues: Sequence[tuple[int, CandidateQueue]],
    summaries: np.ndarray,
    stale_after: float,
    generator: int,
    generators: int,
) -> tuple[int, CandidateQueue, Taken] | None:
    """Return the stale candidate that knew the fewest trials, with its replica and queue; None if none is
    stale.

    Arguments:
        queues: the replicas of the queue group with their queues.
        summaries: the visible rows of the history (dtype SUMMARY_DTYPE).
        stale_after: the setting of that name.
        generator, generators: index of this generator in its queue group, and their number; each has tickets
            of its own, so that no two of them replace the same candidate.
    """
    ended = (summaries["kind"] == OUTCOME) & np.isin(summaries["status"], SUCCESSES)
    finished, stale = int(np.count_nonzero(ended)), []
    for replica, candidates in queues:
        if not is_stale(0, finished, stale_after):
            break
        for waiting in candidates.waiting():
            trial = int(waiting.record["trial"])
            # The initial architecture is trained in any case, and a candidate not yet visible is young.
            if (
                int(waiting.record["parent"]) < 0
                or trial >= len(summaries)
                or waiting.ticket % generators != generator
            ):
                continue
            known = int(np.count_nonzero(ended[:trial]))
            if is_stale(known, finished, stale_after):
                stale.append((known, waiting.ticket, replica, candidates, waiting))
    if not stale:
        return None
    _, _, replica, candidates, waiting = min(stale, key=lambda item: item[:3])
    return replica, candidates, waiting
