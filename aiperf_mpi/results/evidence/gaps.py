# SPDX-License-Identifier: Apache-2.0
"""How long each replica's devices waited between candidates, and their share of productive time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence


@dataclass(frozen=True)
class Gaps:
    """Times of a replica between its first and its last step.

    Attributes:
        replica: its index.
        trials: number of trials that reached their first step.
        seconds: f8 [trials - 1], times in s from the last counted batch of a trial to the dispatch of the
            next trial's first step. NaN after a trial without counted batches.
        share: share of the time from the first to the last step in the phases train and validate, mean over
            the replica's trainers; NaN without a trainer's row.
        prepared: median time to trace and compile a candidate in s, on whatever rank it was done.
    """

    replica: int
    trials: int
    seconds: np.ndarray
    share: float
    prepared: float


def gaps(e: Evidence) -> list[Gaps]:
    """Return the gaps of each replica that reached a step, in order of the replicas."""
    trials, epochs, ranks = e.table("trials"), e.table("epochs"), e.table("ranks")
    first = trials["t_first_step"]
    replicas = []
    ended = np.array([epochs["t_end"][rows].max(initial=-math.inf) for rows in e.own_epochs])
    last = np.where(np.isfinite(ended), ended, math.nan) if len(ended) else ended
    for replica in np.unique(trials["replica"][np.isfinite(first)]).tolist():
        own = np.flatnonzero(np.isfinite(first) & (trials["replica"] == replica))
        own = own[np.argsort(first[own], kind="stable")]
        trainers = (ranks["replica"] == replica) & (ranks["role"].astype(str) == "trainer")
        worked = ranks["seconds_train"][trainers] + ranks["seconds_validate"][trainers]
        span = np.nanmax(last[own], initial=-math.inf) - first[own[0]]
        replicas.append(
            Gaps(
                replica,
                len(own),
                first[own[1:]] - last[own[:-1]],
                float(worked.mean() / span) if len(worked) and 0 < span < math.inf else math.nan,
                float(np.median(trials["trace_seconds"][own] + trials["compile_seconds"][own])),
            )
        )
    return replicas
