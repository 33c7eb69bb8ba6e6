# SPDX-License-Identifier: Apache-2.0
"""Runs whose children start from their parents' weights."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.judge.judge import judge
from aiperf_mpi.results.output import journal
from aiperf_mpi.trials.record import FROM_CHECKPOINT, KEPT, OUTCOME, PROPOSED, WITHDRAWN
from tests.helpers.end_to_end import runs

pytestmark = pytest.mark.mpi

INHERIT = "model.initial_weight='inherit'"


def first_errors(ended: runs.Ended) -> dict[int, float]:
    """The validation error after the first epoch of each trial that has one."""
    epochs = ended.table("epochs")
    first = (epochs["epoch"] == 0) & np.isfinite(epochs["val_error"])
    return dict(zip(epochs["trial_id"][first].tolist(), epochs["val_error"][first].tolist(), strict=True))


def records(ended: runs.Ended) -> np.ndarray:
    return journal.replay(ended.folder / "journal.jsonl").records


def from_checkpoints(ended: runs.Ended) -> set[int]:
    """Trials that start from their parents' kept weights."""
    run = journal.replay(ended.folder / "journal.jsonl")
    chosen = (run.records["kind"] == PROPOSED) & (run.records["flags"] & FROM_CHECKPOINT > 0)
    return set(run.slots[chosen].tolist())


@pytest.mark.full
def test_children_begin_where_their_parents_were(tmp_path: Path) -> None:
    def enough(run: Run) -> bool:
        """Two children of trained weights have an epoch."""
        begun = [record["flags"] & FROM_CHECKPOINT > 0 for record in runs.trained(run).values()]
        return sum(begun) >= 2

    sets = (INHERIT, "result.keep_checkpoints=3", "search.queue_depth=1")
    ended = runs.run_until(enough, 4, tmp_path / "run", sets)
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    assert ended.lines["division"] == "open"
    trials = ended.table("trials")
    began = np.isfinite(trials["t_start"]) & (trials["parent_id"] >= 0) & (trials["train_samples"] > 0)
    difference = trials["morph_max_abs_diff"]
    assert np.all(difference[began] <= 1e-4) and np.isnan(difference[trials["parent_id"] < 0]).all()
    assert np.count_nonzero(began) >= 2 and difference[began].max() > 0

    # The first epoch of a child of trained weights is better than that of trial 0, which began with He's.
    first, inherited = first_errors(ended), from_checkpoints(ended)
    assert inherited & set(first), "no child of trained weights was trained"
    assert np.median([first[trial] for trial in inherited & set(first)]) < first[0] / 2

    # The judge measured the same, and would not take a difference for none.
    finding = next(finding for finding in judge(ended.result).findings if finding.id == "V08")
    assert finding.passed and f"{np.count_nonzero(began)} children" in finding.measured


@pytest.mark.full
def test_only_kept_weights_have_children(tmp_path: Path) -> None:
    """Two replicas keep one each. A trial whose weights a better one replaced is withdrawn for all
    replicas, and is not a parent from then on."""
    ended = runs.run(
        5, tmp_path / "run", (INHERIT, "search.queue_depth=1"), "--ranks-per-node", "2", seconds=50
    )
    assert ended.code == 0, ended.text()
    found = records(ended)
    kept = set(found["trial"][(found["kind"] == OUTCOME) & (found["flags"] & KEPT > 0)].tolist())
    withdrawn = set(found["trial"][found["kind"] == WITHDRAWN].tolist())
    assert withdrawn, "no weights were pushed out"
    assert withdrawn <= kept and len(kept - withdrawn) == 2
    parents = found["parent"][(found["kind"] == PROPOSED) & (found["flags"] & FROM_CHECKPOINT > 0)]
    assert set(parents.tolist()) <= kept

    # Left are the best of each replica; trials that core stop cut short may have been written, too.
    trials = ended.table("trials")
    names = {int(path.stem) for path in (ended.folder / "checkpoints").iterdir()}
    assert len(names) == 2 and names <= kept | set(
        trials["trial_id"][trials["status"] == "unfinished"].tolist()
    )
    for name in names:
        own = trials["replica"] == trials["replica"][trials["trial_id"] == name]
        assert trials["best_error"][trials["trial_id"] == name] == np.nanmin(trials["best_error"][own])


@pytest.mark.full
def test_weights_that_vanish_cost_their_children_only(tmp_path: Path) -> None:
    """Whatever is kept is removed at once: children are rejected or fail, the search turns to the initial
    weights."""
    folder, over = tmp_path / "run", threading.Event()
    sets = (INHERIT, "result.keep_checkpoints=4")

    def remove() -> None:
        while not over.is_set():
            for path in (folder / "checkpoints").glob("[0-9]*.h5"):
                path.unlink(missing_ok=True)
            time.sleep(0.01)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        job = runs.start(4, folder, sets, seconds=600)
        wait_for(
            folder,
            lambda trials: (
                sum(b"gone" in cause for cause in trials["cause"]) >= 2
                and np.count_nonzero(np.isin(trials["status"], (1, 2))) >= 3
            ),
        )
        job.terminate()
        ended = runs.finish(job, folder)
    finally:
        over.set()
        thread.join()
    assert ended.lines["status"] == "VALID", ended.text()
    trials = ended.table("trials")
    gone = np.array(["gone" in cause for cause in trials["cause"]])
    assert set(trials["status"][gone]) == {"rejected"} and not trials["train_samples"][gone].any()
    assert np.count_nonzero(np.isin(trials["status"], ("done", "stopped"))) >= 3
    # Two tickets wait in the queue, and one is in the making, when the search hears of each loss.
    assert np.count_nonzero(gone) <= 3 * np.count_nonzero(records(ended)["kind"] == WITHDRAWN)


def wait_for(folder: Path, condition, timeout: float = 150) -> None:
    """Wait until the trials in the journal of a run fulfil a condition."""
    limit, path = time.monotonic() + timeout, folder / "journal.jsonl"
    while time.monotonic() < limit:
        if path.exists() and condition(journal.replay(path).trials):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{path}: not so after {timeout:g} s")
