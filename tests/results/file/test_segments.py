# SPDX-License-Identifier: Apache-2.0
"""Runs of several segments: what the collector keeps, and what the result has of each start."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aiperf_mpi.results.file.rows import EPOCH_ROW, new_row
from aiperf_mpi.results.file.segments import Continuation
from aiperf_mpi.results.file.tables import build, trained_last
from tests.helpers.results.resumed_run import KILLED, STARTS, collected, resumed_run, run_of


def test_rows_after_the_last_checkpoint_leave_the_run() -> None:
    run = resumed_run()
    before = run_of(run.first)
    # Of each replica the first trial has ended, and the second one has an epoch (3 to 4 s).
    assert (len(before.epochs), before.core_seconds, before.segments[0].end) == (8, KILLED, "killed")

    after = run_of([*run.first, run.second[0]])
    assert (len(after.epochs), after.core_seconds) == (6, KILLED)
    lost = after.segments[0]
    assert (lost.lost_trials, lost.lost_epochs, lost.end, lost.seconds) == (2, 2, "killed", KILLED)
    # The rows with which the two trials began are gone, too; those of the ended ones stay.
    assert np.isfinite(after.trials["t_end"]).all() and len(after.trials) == 2


def test_epochs_of_a_checkpoint_stay() -> None:
    run = resumed_run()
    taken = Continuation(KILLED, dict.fromkeys(Continuation.from_dict(run.second[0][2]).again, 1))
    after = run_of([*run.first, ("resume", -1, taken.to_dict())])
    assert len(after.epochs) == 8 and len(after.trials) == 4
    assert (after.segments[0].lost_trials, after.segments[0].lost_epochs) == (2, 0)


def test_the_core_time_is_the_sum_of_the_segments() -> None:
    run = run_of(resumed_run().entries)
    first, second = run.segments
    assert (first.begin, first.stop, second.begin, second.stop) == (0.0, KILLED, KILLED, run.core_seconds)
    assert (run.core_start_utc, second.start_utc, run.end) == (*STARTS, "time_limit")
    # The first segment counts with its core time, the second one with rank 0's wall time.
    assert run.total_seconds == pytest.approx(KILLED + run.core_seconds - KILLED + 2.0)

    table = build(run).tables["segments"]
    assert table["segment"].tolist() == [1, 2] and table["end"].tolist() == ["killed", "time_limit"]
    assert table["hostname"].tolist() == ["head", "head"] and table["mpi"].tolist() == ["MPICH 4"] * 2
    assert table["lost_epochs"].tolist() == [2, 0]
    assert math.isnan(table["total_seconds"][0]) and table["total_seconds"][1] > 0


def test_a_start_without_core_time_is_no_segment() -> None:
    run = resumed_run()
    killed_early = [*run.first, *run.second[:2]]
    once = run_of(killed_early)
    assert len(once.segments) == 1 and once.core_seconds == KILLED and once.end == "killed"
    assert once.header is not None and once.header.n_ranks == run.example.header.n_ranks
    # The next start takes the same over again, and nothing is lost twice.
    after = run_of([*killed_early, *run.second])
    assert [segment.lost_epochs for segment in after.segments] == [2, 0]


def test_ranks_and_samples_are_those_of_their_segment() -> None:
    run = run_of(resumed_run("drained").entries)
    tables = build(run).tables
    ranks, samples = tables["ranks"], tables["samples"]
    n_ranks = len(ranks["rank"]) // 2
    assert ranks["segment"].tolist() == [1] * n_ranks + [2] * n_ranks
    assert ranks["rank"].tolist() == [*range(n_ranks)] * 2
    assert set(tables["messages"]["segment"].tolist()) == {1, 2}
    # Windows count anew in each segment.
    for segment in (1, 2):
        own = (samples["segment"] == segment) & (samples["node"] == 0)
        assert samples["window"][own].tolist() == [*range(int(own.sum()))]


def test_a_time_mark_proves_the_core_time() -> None:
    run = resumed_run()
    without = collected([entry for entry in run.first if entry[0] != "mark"]).snapshot(end="killed")
    assert without.core_seconds == 4.0
    assert run_of(run.first).core_seconds == KILLED


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"core_seconds": math.nan, "again": [], "reopened": []},
        {"core_seconds": -1, "again": [], "reopened": []},
        {"core_seconds": 1, "again": [[1]], "reopened": []},
        {"core_seconds": 1, "again": [], "reopened": ["x"]},
    ],
)
def test_a_resume_that_cannot_be_read_is_refused(data: dict) -> None:
    with pytest.raises(ValueError):
        collected([]).event("resume", data)


def test_epochs_that_were_trained_again_count_once() -> None:
    """The newest state of a trial was damaged: it goes on from an older one, and then ends early."""
    rows = [(1, 0, 1.0), (1, 1, 2.0), (1, 2, 3.0), (1, 1, 11.0), (2, 0, 4.0)]
    epochs = np.concatenate(
        [new_row(EPOCH_ROW, trial_id=trial, epoch=epoch, t_end=t) for trial, epoch, t in rows]
    )
    epochs = epochs[np.lexsort((epochs["t_end"], epochs["epoch"], epochs["trial_id"]))]
    assert trained_last(epochs)["t_end"].tolist() == [1.0, 11.0, 4.0]
    assert trained_last(epochs[:0]).tolist() == []


def test_a_trial_that_goes_on_keeps_its_beginning() -> None:
    run = resumed_run()
    again = Continuation.from_dict(run.second[0][2]).again
    trial = min(again)
    taken = Continuation(KILLED, again | {trial: 1})
    second = [("resume", -1, taken.to_dict()), *run.second[1:]]
    for kind, _, row in second:
        if kind == "trial" and row["trial_id"][0] == trial:
            row["resumed"] = 1
    # Its first epoch is that of the first segment; the second one trained the others.
    second = [
        e for e in second if not (e[0] == "epoch" and (e[2]["trial_id"][0], e[2]["epoch"][0]) == (trial, 0))
    ]
    tables = build(run_of([*run.first, *second])).tables
    place = tables["trials"]["trial_id"].tolist().index(trial)
    assert (tables["trials"]["t_start"][place], tables["trials"]["t_first_step"][place]) == (3.0, 3.5)
    own = tables["epochs"]["trial_id"] == trial
    assert tables["epochs"]["t_end"][own].tolist() == [4.0, 6.25, 7.25]
