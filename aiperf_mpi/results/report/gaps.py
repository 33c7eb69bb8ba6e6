# SPDX-License-Identifier: Apache-2.0
"""How long each replica's devices waited between candidates, and how much of their time they trained and
validated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence


@dataclass(frozen=True)
class Gaps:
    """A replica from its first step to its last.

    Attributes:
        replica: its index.
        trials: those that came to a step.
        seconds: f8 [trials - 1], from the last counted batch of a trial to the dispatch of the next one's
            first step (NaN behind a trial of which nothing counted).
        share: of the time from its first to its last step, the part in the phases train and validate, mean
            over its trainers; NaN without a trainer's row.
        prepared: f8, median seconds that tracing and compiling a candidate took, wherever it was done.
    """

    replica: int
    trials: int
    seconds: np.ndarray
    share: float
    prepared: float


def gaps(e: Evidence) -> list[Gaps]:
    """Those of each replica that came to a step, in their order."""
    trials, epochs, ranks = e.table("trials"), e.table("epochs"), e.table("ranks")
    first, found = trials["t_first_step"], []
    ended = np.array([epochs["t_end"][rows].max(initial=-math.inf) for rows in e.own_epochs])
    last = np.where(np.isfinite(ended), ended, math.nan) if len(ended) else ended
    for replica in np.unique(trials["replica"][np.isfinite(first)]).tolist():
        own = np.flatnonzero(np.isfinite(first) & (trials["replica"] == replica))
        own = own[np.argsort(first[own], kind="stable")]
        trainers = (ranks["replica"] == replica) & (ranks["role"].astype(str) == "trainer")
        worked = ranks["seconds_train"][trainers] + ranks["seconds_validate"][trainers]
        span = np.nanmax(last[own], initial=-math.inf) - first[own[0]]
        found.append(
            Gaps(
                replica,
                len(own),
                first[own[1:]] - last[own[:-1]],
                float(worked.mean() / span) if len(worked) and 0 < span < math.inf else math.nan,
                float(np.median(trials["trace_seconds"][own] + trials["compile_seconds"][own])),
            )
        )
    return found
