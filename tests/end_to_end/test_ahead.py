# SPDX-License-Identifier: Apache-2.0
"""Candidates that are made ready while the one before them trains: what they cost, and that every contract
holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.results.judge.judge import judge
from tests.helpers.end_to_end import runs

pytestmark = pytest.mark.mpi

#: Trials long enough that the next one can be made ready meanwhile, though two cores do both.
AHEAD = (
    "parallel.compile_ahead='on'",
    "data.train_images=65536",
    "train.round_epochs=[2]",
    "search.max_morphs=1",
    "hpo.from_round=1000",
)


@pytest.mark.full
@pytest.mark.timeout(700)
def test_the_next_candidate_waits_ready(tmp_path: Path) -> None:
    """After a trial that lasts longer than the next one's compilation the devices wait for a few steps'
    time; a candidate with a false count is rejected meanwhile, and one that raises fails at its turn."""
    sets = (*AHEAD, "fault.tamper_in_round=2", "fault.raise_in_round=4")
    ended = runs.run_until(
        lambda run: any(record["round"] >= 5 for record in runs.trained(run).values()),
        4,
        tmp_path / "run",
        sets,
        env=runs.COMPILER,
        timeout=500,
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    trials = ended.table("trials")
    compiled = trials["trace_seconds"] + trials["compile_seconds"]
    found = runs.gaps(ended)
    assert len(found) >= 3 and np.nanmin(found) < 0.1 < 0.1 * np.nanmedian(compiled), (found, compiled)

    # Tickets are trained in order, each once; the rejected one was filled again.
    trained = np.flatnonzero(np.isfinite(trials["t_start"]))
    rounds = trials["round"][trained[np.argsort(trials["t_start"][trained])]]
    assert list(rounds) == list(range(1, len(rounds) + 1))
    status = dict(zip(trials["round"][trained].tolist(), trials["status"][trained].tolist(), strict=True))
    assert status[4] == "failed" and status[3] == "done"
    rejected = trials["status"] == "rejected"
    assert list(trials["round"][rejected]) == [2] and "by the tables" in trials["cause"][rejected][0]

    # Work of the thread is not counted twice: the phases are the main thread's.
    finding = next(finding for finding in judge(ended.result).findings if finding.id == "V13")
    assert finding.passed
