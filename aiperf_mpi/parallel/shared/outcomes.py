# SPDX-License-Identifier: Apache-2.0
"""What a replica adds to the history beyond a trial: rejections, and the withdrawal of weights."""

from __future__ import annotations

import numpy as np

from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.messages import Kind
from aiperf_mpi.results.file.rows import TRIAL_ROW, new_row
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.record import REJECTED, rejection, withdrawal


def reject(context: Context, proposed: np.void, trial_id: int, cause: str) -> None:
    """Record that a proposed candidate is not trained, and why.

    The search reads it in the history, and the result has it as a row. `proposed` is the PROPOSED record,
    which may have an error in it.
    """
    now = context.now()
    context.windows.history.append(rejection(proposed, trial_id, now, cause))
    row = new_row(TRIAL_ROW, trial_id=trial_id, status=REJECTED, t_end=now, cause=cause)
    context.windows.messages.send(Kind.TRIAL, row[0])


def withdraw(context: Context, trial_id: int) -> None:
    """Record in the history that a replica no longer keeps the weights of a trial; its first trainer does."""
    if not context.ranks.leads:
        return
    with context.timer("communicate"):
        try:
            context.windows.history.append(withdrawal(trial_id, context.ranks.replica, context.now()))
        except HistoryFull:
            # Rank 0 drains the run when the history is full, and no candidate is proposed any more.
            return
