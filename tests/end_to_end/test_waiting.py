# SPDX-License-Identifier: Apache-2.0
"""Candidates are there before a trainer asks for them: what the result file says of the time between two
trials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.output import journal
from aiperf_mpi.trials.record import OUTCOME, PROPOSED, SUCCESSES
from aiperf_mpi.trials.view import START
from tests.helpers.end_to_end import runs

pytestmark = [pytest.mark.mpi, pytest.mark.full, pytest.mark.timeout(3600)]

#: Trials of a run, and how many of its candidates the surrogate must have proposed: it is asked from the
#: third finished trial on, and the first candidates were made before.
TRIALS, BY_SURROGATE = 36, 20

#: Core time of a run that is compared with another one of the same length.
SECONDS = 100.0


def gaps(ended: runs.Ended, replica: int) -> tuple[np.ndarray, float]:
    """Seconds between the end of a trial and the start of the replica's next one; and those from the end of
    its first trial to the start of its last one."""
    trials = ended.table("trials")
    own = (trials["train_samples"] > 0) & (trials["replica"] == replica)
    order = np.argsort(trials["t_start"][own])
    starts, ends = trials["t_start"][own][order], trials["t_end"][own][order]
    return starts[1:] - ends[:-1], float(starts[-1] - ends[0])


def by_surrogate(run: Run) -> int:
    """Candidates that were proposed when the surrogate had enough finished trials to be asked."""
    order = np.argsort(run.slots)
    kinds, status = run.records["kind"][order], run.records["status"][order]
    finished = np.cumsum((kinds == OUTCOME) & np.isin(status, SUCCESSES))
    return int(np.count_nonzero((kinds == PROPOSED) & (finished >= START)))


def trained(run: Run) -> int:
    """Trials that have ended well."""
    return int(np.count_nonzero((run.records["kind"] == OUTCOME) & np.isin(run.records["status"], SUCCESSES)))


@pytest.mark.parametrize("per_node", [0, 3])
def test_trainers_of_seven_ranks_do_not_wait(per_node: int, tmp_path: Path) -> None:
    """One trainer with five generators, and two trainers with two generators each, on however few cores there
    are."""
    more = ("--ranks-per-node", str(per_node)) if per_node else ()
    ended = runs.run_until(
        lambda run: trained(run) >= TRIALS and by_surrogate(run) >= BY_SURROGATE,
        7,
        tmp_path / "run",
        ("search.method='bayesian'",),
        *more,
        timeout=3000,
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    run = journal.replay(ended.folder / "journal.jsonl")
    assert trained(run) >= TRIALS and by_surrogate(run) >= BY_SURROGATE, ended.text()

    # Under 1 % of the time after its first trial: all that lay between a replica's trials, whatever its
    # trainer did.
    for replica in sorted({int(replica) for replica in ended.table("ranks")["replica"] if replica >= 0}):
        between, seconds = gaps(ended, replica)
        print(
            f"\nreplica {replica}: {between.sum():.3f} s between {len(between) + 1} trials, "
            f"{between.max():.3f} s at "
            f"most, {100 * between.sum() / seconds:.3f} % of {seconds:.0f} s; {by_surrogate(run)} of "
            f"{np.sum(run.records['kind'] == PROPOSED)} candidates by the surrogate"
        )
        assert between.sum() < 0.01 * seconds


def test_a_trainer_that_generates_for_itself(tmp_path: Path) -> None:
    """On two ranks the Bayesian search thinks in a thread of the trainer; it takes little more of it than a
    random search does: the share of the time in which the trainer trains, validates or compiles stays above
    nine tenths of that."""
    shares = {}
    for method in ("random", "bayesian"):
        ended = runs.run(
            2, tmp_path / method, (f"search.method='{method}'",), seconds=SECONDS, timeout=SECONDS + 150
        )
        assert ended.code == 0 and ended.lines["status"] == "VALID", ended.text()
        ranks = ended.table("ranks")
        work = sum(ranks[f"seconds_{phase}"][1] for phase in ("compile", "train", "validate"))
        trials = int(np.sum(ended.table("trials")["train_samples"] > 0))
        shares[method] = work / SECONDS
        print(
            f"\n{method}: {trials} trials, {100 * shares[method]:.1f} % at work, idle "
            f"{ranks['seconds_idle'][1]:.2f} s, {gaps(ended, 0)[0].sum():.2f} s between trials"
        )
    assert shares["bayesian"] > 0.9 * shares["random"]
