# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture, Base, Morph
from aiperf_mpi.parallel.generator.choice import propose
from aiperf_mpi.search.nas import SEARCHES, make_search
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.view import HistoryView
from tests.helpers.trials.twins import ArrayHistory

INITIAL = Architecture(Base(16, 1, 4, 4, (1, 1)))


def history() -> ArrayHistory:
    """Trial 0 and twelve children; all have ended, the weights of two of them are kept, and neither is the
    best."""
    log = ArrayHistory(64)
    root = Candidate.new(
        INITIAL, (), parent_id=-1, replica=0, generator=0, round=1, batch_per_device=8, devices=1, seed=1
    )
    log.append(root.to_record(0.0))
    children = []
    for number in range(12):
        own = (Morph("deeper", number % 7, 0, 3 + 2 * (number // 7)),)
        child = Candidate.new(
            INITIAL.apply(*own),
            own,
            parent_id=0,
            replica=0,
            generator=0,
            round=2 + number,
            batch_per_device=8,
            devices=1,
            seed=1,
        )
        children.append(dataclasses.replace(child, trial_id=log.append(child.to_record(0.0))))
    for number, child in enumerate(children):
        log.append(child.outcome(rec.DONE, 1.0, best_error=0.1 + number / 100, kept=number in (4, 9)))
    log.refresh()
    return log


@pytest.mark.parametrize("method", SEARCHES)
def test_only_trials_with_kept_weights_pass_them_on(method: str) -> None:
    search, log = make_search(method, population=12, sample_size=6), history()
    view = HistoryView.of(log, INITIAL, inherit=True)
    kept = set(view.parents.tolist())
    assert len(kept) == 2
    parents = {propose(search, view, np.random.default_rng(seed)).parent_id for seed in range(10)}
    assert parents <= kept | {0} and kept & parents

    # Without inheritance others have children, too.
    free = HistoryView.of(log, INITIAL)
    assert {propose(search, free, np.random.default_rng(seed)).parent_id for seed in range(10)} - kept - {0}
