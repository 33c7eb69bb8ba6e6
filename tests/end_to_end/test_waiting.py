# SPDX-License-Identifier: Apache-2.0
"""Candidates are there before a trainer asks for them: what the result file says of the time between two trials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end import runs

pytestmark = [pytest.mark.mpi, pytest.mark.full]

#: The Bayesian search asks its surrogate from the eighth finished trial on: an idle machine gets well beyond that in
#: this time, a loaded one may not; how many trials there were is printed.
SECONDS = 100.0


def gaps(ended: runs.Ended, replica: int) -> np.ndarray:
    """Seconds between the end of a trial and the start of the replica's next one."""
    trials = ended.table("trials")
    own = (trials["train_samples"] > 0) & (trials["replica"] == replica)
    order = np.argsort(trials["t_start"][own])
    return trials["t_start"][own][order][1:] - trials["t_end"][own][order][:-1]


@pytest.mark.parametrize("per_node", [0, 3])
def test_trainers_of_seven_ranks_do_not_wait(per_node: int, tmp_path: Path) -> None:
    """One trainer with five generators, and two trainers with two generators each, on however few cores there are."""
    more = ("--ranks-per-node", str(per_node)) if per_node else ()
    ended = runs.run(7, tmp_path / "run", ("search.method='bayesian'",), *more, seconds=SECONDS, timeout=SECONDS + 150)
    assert ended.code == 0 and ended.lines["status"] == "VALID", ended.text()
    assert np.sum(ended.table("trials")["train_samples"] > 0) >= 4, ended.text()

    # Under 1 % of the core time: all that lay between the trials of a replica, whatever the trainer did there.
    ranks = ended.table("ranks")
    for replica, idle in zip(ranks["replica"], ranks["seconds_idle"], strict=True):
        if replica >= 0:
            between = gaps(ended, int(replica))
            print(f"\nreplica {replica}: idle {idle:.3f} s, {between.sum():.3f} s between {len(between) + 1} trials")
            assert len(between) and between.sum() < 0.01 * SECONDS


def test_a_trainer_that_generates_for_itself(tmp_path: Path) -> None:
    """On two ranks the Bayesian search thinks in a thread of the trainer; it takes little more of it than a random
    search does: the share of the time in which the trainer trains, validates or compiles stays above nine tenths of
    that."""
    shares = {}
    for method in ("random", "bayesian"):
        ended = runs.run(2, tmp_path / method, (f"search.method='{method}'",), seconds=SECONDS, timeout=SECONDS + 150)
        assert ended.code == 0 and ended.lines["status"] == "VALID", ended.text()
        ranks = ended.table("ranks")
        work = sum(ranks[f"seconds_{phase}"][1] for phase in ("compile", "train", "validate"))
        trials = int(np.sum(ended.table("trials")["train_samples"] > 0))
        shares[method] = work / SECONDS
        print(f"\n{method}: {trials} trials, {100 * shares[method]:.1f} % at work, idle "
              f"{ranks['seconds_idle'][1]:.2f} s, {gaps(ended, 0).sum():.2f} s between trials")  # fmt: skip
    assert shares["bayesian"] > 0.9 * shares["random"]
