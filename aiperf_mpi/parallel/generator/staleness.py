# SPDX-License-Identifier: Apache-2.0
"""Which waiting candidate knows too little: one that was thought of when much fewer trials had finished.

A candidate that its trainer makes ready ahead waits no longer: it is TAKEN, and nobody replaces it.

How much a candidate knew is counted in the history: the trials that had finished before its own record. The
few that finished while it was thought of count as known, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aiperf_mpi.parallel.shared.queue import CandidateQueue, Taken
from aiperf_mpi.trials.record import OUTCOME, SUCCESSES
from aiperf_mpi.trials.view import START


def is_stale(known: int, finished: int, stale_after: float) -> bool:
    """Whether a candidate that knew `known` finished trials is stale when `finished` have; as fewer than
    START teach the search nothing, it counts as if it had known at least so many."""
    return finished > stale_after * max(known, START)


def stalest(
    queues: Sequence[tuple[int, CandidateQueue]],
    summaries: np.ndarray,
    stale_after: float,
    generator: int,
    generators: int,
) -> tuple[int, CandidateQueue, Taken] | None:
    """The waiting candidate that knows least, with its replica and queue; None where none is stale.

    Arguments:
        queues: the replicas of the queue group with their queues.
        summaries: the visible rows of the history (dtype SUMMARY_DTYPE).
        stale_after: the setting of that name.
        generator, generators: index of this generator in its queue group, and how many there are; each looks
            after tickets of its own, so that no two of them replace the same candidate.
    """
    ended = (summaries["kind"] == OUTCOME) & np.isin(summaries["status"], SUCCESSES)
    finished, found = int(np.count_nonzero(ended)), []
    for replica, candidates in queues:
        if not is_stale(0, finished, stale_after):
            break
        for waiting in candidates.waiting():
            trial = int(waiting.record["trial"])
            # The initial architecture is trained whatever is known, and one that is not visible yet is young.
            if (
                int(waiting.record["parent"]) < 0
                or trial >= len(summaries)
                or waiting.ticket % generators != generator
            ):
                continue
            known = int(np.count_nonzero(ended[:trial]))
            if is_stale(known, finished, stale_after):
                found.append((known, waiting.ticket, replica, candidates, waiting))
    if not found:
        return None
    _, _, replica, candidates, waiting = min(found, key=lambda item: item[:3])
    return replica, candidates, waiting
