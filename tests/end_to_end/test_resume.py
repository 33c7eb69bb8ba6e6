# SPDX-License-Identifier: Apache-2.0
"""A run that is killed goes on in its own folder: nothing that ended is lost, and nothing counts twice."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.judge.judge import Verdict, judge
from aiperf_mpi.results.output import journal
from aiperf_mpi.results.output.lock import LOCK
from aiperf_mpi.training.checkpoint import load_checkpoint
from tests.helpers import launch
from tests.helpers.end_to_end import runs

pytestmark = pytest.mark.mpi

#: Networks of one block on small images: a trial of two epochs takes a second.
SMALL = ("model.blocks=[1]", "model.width=2", "data.image_size=8", "search.max_parameters=2000")


def journaled(folder: Path) -> Run:
    """The run as the journal in a folder has it; an empty one where there is none yet."""
    path = folder / "journal.jsonl"
    try:
        return journal.replay(path)
    except ValueError:
        return journal.RunCollector().snapshot()


def kill_when(enough: Callable[[Run], bool], ranks: int, folder: Path, *more: str, **options: object) -> Run:
    """Start or resume a run, kill all of its processes once its journal has enough, and return that."""
    words = ("--resume", str(folder)) if (folder / "journal.jsonl").exists() else ()
    job = start(ranks, folder, *words, *more, **options)
    limit = time.monotonic() + 120
    while job.poll() is None and not enough(journaled(folder)):
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert job.poll() is None, runs.finish(job, folder).text()
    running = launch.processes(job)
    launch.kill(job)
    launch.wait_for_end(running)
    return journaled(folder)


def start(
    ranks: int,
    folder: Path,
    *more: str,
    seconds: float = 20,
    mpi: str = "mpich",
    sets: tuple[str, ...] = SMALL,
):
    """Start a small run, or resume one: the words `--resume FOLDER` take the place of those of a new run."""
    if "--resume" in more:
        words = ["-m", "aiperf_mpi", "run", "--view", "plain", *more]
        return launch.start(ranks, words, mpi=mpi, env=runs.QUICK_COMPILER)
    return runs.start(ranks, folder, sets, *more, seconds=seconds, mpi=mpi)


def resume(ranks: int, folder: Path, *more: str, mpi: str = "mpich", timeout: float = 180) -> runs.Ended:
    """Resume the run of a folder, up to its end."""
    return runs.finish(start(ranks, folder, "--resume", str(folder), *more, mpi=mpi), folder, timeout)


def resume_until(enough: Callable[[Run], bool], ranks: int, folder: Path, *more: str) -> runs.Ended:
    """Resume the run of a folder, and drain it once its journal has enough."""
    job = start(ranks, folder, "--resume", str(folder), *more)
    limit = time.monotonic() + 120
    while job.poll() is None and not enough(journaled(folder)) and time.monotonic() < limit:
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    return runs.finish(job, folder)


def assert_goes_on(before: Run, ended: runs.Ended, segments: int = 2, code: int = 0) -> Verdict:
    """The resumed run is a VALID trial, and has all that had ended before, unchanged."""
    assert ended.code == code and ended.lines["status"] == "VALID", ended.text()
    assert ended.lines["class"] == "trial" and ended.lines["segments"] == str(segments)
    # Exact sums (V05), no candidate trained twice (I06), rounds and ends by rule (I14, I18).
    verdict = judge(ended.result)
    assert verdict.valid and verdict.segments == segments, verdict.reasons

    trials, epochs, table = ended.table("trials"), ended.table("epochs"), ended.table("segments")
    for row in runs.ended(before):
        if row["status"] == 0:
            continue
        place = int(np.flatnonzero(trials["trial_id"] == row["trial_id"])[0])
        for name in ("t_start", "t_end", "epochs", "best_error", "train_samples"):
            assert np.array_equal(trials[name][place], row[name], equal_nan=True), (row["trial_id"], name)
        own, its = epochs["trial_id"] == row["trial_id"], before.epochs["trial_id"] == row["trial_id"]
        for name in ("t_end", "train_loss", "val_error"):
            assert np.array_equal(epochs[name][own], before.epochs[name][its], equal_nan=True)
    # The sum of the segments counts, each from its start to the last moment that the journal proves.
    assert table["t_end"][-1] == verdict.core_seconds
    assert table["t_start"][1:].tolist() == table["t_end"][:-1].tolist()
    assert not (ended.folder / LOCK).exists()
    return verdict


def has_ended_and_runs(run: Run) -> bool:
    """Whether a trial has ended, and another one has an epoch."""
    over = {int(row["trial_id"]) for row in runs.ended(run)}
    return bool(over) and bool(set(run.epochs["trial_id"].tolist()) - over)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """SIGKILL of all processes while a trial trains: that trial begins again under its own id."""
    folder = tmp_path / "run"
    before = kill_when(has_ended_and_runs, 3, folder, seconds=3600)
    # The partial result is a whole file, of a run that has not ended.
    partial = judge(folder / "result.partial.h5")
    assert not partial.valid and "V21" in partial.reason_ids
    over = {int(row["trial_id"]) for row in runs.ended(before)}
    (running,) = set(before.epochs["trial_id"].tolist()) - over
    ended = resume_until(lambda run: running in runs.ended(run)["trial_id"], 3, folder)
    assert_goes_on(before, ended, code=4)
    assert "core time goes on at" in ended.err and "1 trial to begin again" in ended.err
    table, trials = ended.table("segments"), ended.table("trials")
    assert table["end"].tolist() == ["killed", "drained"] and table["lost_trials"].tolist() == [1, 0]
    again = trials["trial_id"].tolist().index(running)
    assert trials["t_start"][again] >= table["t_start"][1] and trials["status"][again] in ("done", "stopped")


@pytest.mark.full
def test_a_trial_goes_on_from_its_last_state(tmp_path: Path) -> None:
    """Its epochs before the kill stay, and the next ones follow on them."""
    folder = tmp_path / "run"
    states = folder / "checkpoints" / "running"
    sets = (*SMALL, "result.checkpoint_seconds=0.01", "train.round_epochs=[8]", "train.epochs=8")

    def has_state(run: Run) -> bool:
        whole = run.epochs[run.epochs["partial"] == 0]
        return any((states / f"0-epoch-{n}.h5").exists() for n in range(2, 8)) and len(whole) >= 3

    before = kill_when(has_state, 3, folder, seconds=3600, sets=sets)
    ended = resume_until(lambda run: 0 in runs.ended(run)["trial_id"], 3, folder)
    assert_goes_on(before, ended, code=4)
    trials, epochs, table = ended.table("trials"), ended.table("epochs"), ended.table("segments")
    assert trials["resumed"][0] == 1 and trials["status"][0] in ("done", "stopped")
    own = epochs["trial_id"] == 0
    kept = epochs["t_end"][own] <= table["t_end"][0]
    assert kept.sum() >= 2 and not kept.all()
    assert trials["t_first_step"][0] < table["t_end"][0]
    its = before.epochs["train_loss"][before.epochs["trial_id"] == 0]
    assert np.array_equal(epochs["train_loss"][own][kept], its[: kept.sum()])


@pytest.mark.full
@pytest.mark.parametrize("weights", ["he", "inherit"])
def test_a_killed_trial_is_the_unbroken_one_to_the_bit(weights: str, tmp_path: Path) -> None:
    """Its losses, errors and best weights are those of a run of the same seed that nothing has killed."""
    sets = (
        *SMALL,
        f"model.initial_weight='{weights}'",
        "data.train_images=4096",
        "train.round_epochs=[6]",
        "train.epochs=6",
        "result.checkpoint_seconds=0.01",
        "result.keep_checkpoints=20",
    )

    def has_ended(run: Run) -> bool:
        return 0 in runs.ended(run)["trial_id"]

    unbroken = runs.run_until(has_ended, 3, tmp_path / "unbroken", sets)
    folder = tmp_path / "broken"
    kill_when(lambda run: len(run.epochs) >= 3, 3, folder, seconds=3600, sets=sets)
    broken = resume_until(has_ended, 3, folder)
    found = []
    for run in (unbroken, broken):
        epochs = run.table("epochs")
        own = epochs["trial_id"] == 0
        rows = [epochs[name][own].tolist() for name in ("epoch", "train_loss", "val_loss", "val_error")]
        found.append((rows, load_checkpoint(run.folder / "checkpoints" / "0.h5").digest))
    assert found[0] == found[1] and len(found[0][0][0]) >= 4
    trials = broken.table("trials")
    assert trials["resumed"][trials["trial_id"].tolist().index(0)] == 1


@pytest.mark.full
def test_a_finished_run_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = kill_when(has_ended_and_runs, 3, folder, seconds=20)
    verdict = assert_goes_on(before, resume(3, folder))
    # The best model of both segments was loaded again at the end.
    assert verdict.error_final == verdict.best_error
    once_more = resume(3, folder)
    assert once_more.code == 0 and "has finished: it reached its time limit" in once_more.err
    assert once_more.out == ""


@pytest.mark.full
def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = start(3, folder, seconds=600)
    try:
        while not len(journaled(folder).epochs):
            time.sleep(0.1)
        refused = resume(3, folder)
        assert refused.code == 2 and "works in this folder; wait until it has ended" in refused.err
        assert job.poll() is None
    finally:
        launch.kill(job)


@pytest.mark.full
@pytest.mark.parametrize("moment", range(50))
def test_kills_at_random_moments(moment: int, tmp_path: Path) -> None:
    """SIGKILL at any moment of a short run, also of its start: what can be resumed ends VALID."""
    folder = tmp_path / "run"
    job = start(3, folder, seconds=12)
    limit = time.monotonic() + 60
    # One in ten is killed at a moment of its start, and the others in their core time.
    while moment % 10 and not journaled(folder).core_start_utc and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(random.Random(f"resume {moment}").uniform(0.0, 8.0))
    assert job.poll() is None
    running = launch.processes(job)
    launch.kill(job)
    launch.wait_for_end(running)
    time.sleep(1.0)
    before = journaled(folder)
    if not before.core_start_utc:
        return
    assert_goes_on(before, resume(3, folder))


@pytest.mark.full
@pytest.mark.parametrize("number", range(10))
def test_three_kills_in_succession(number: int, tmp_path: Path) -> None:
    folder, rng = tmp_path / "run", random.Random(f"three {number}")
    rows = 0
    for segments in range(1, 4):
        rows += rng.randint(1, 4)
        before = kill_when(
            lambda run, s=segments, n=rows: len(run.segments) == s and len(run.epochs) >= n,
            3,
            folder,
            seconds=30,
        )
    assert_goes_on(before, resume(3, folder), segments=4)


@pytest.mark.full
@pytest.mark.parametrize(("first", "second"), [(7, 4), (4, 7)])
def test_another_number_of_ranks(first: int, second: int, tmp_path: Path) -> None:
    """Two replicas of a trainer and two generators become one, or one becomes two."""
    folder, nodes = tmp_path / "run", ("--ranks-per-node", "3")
    before = kill_when(has_ended_and_runs, first, folder, *nodes, seconds=20)
    ended = resume(second, folder)
    assert_goes_on(before, ended)
    assert ended.table("segments")["n_ranks"].tolist() == [first, second]
    trials = ended.table("trials")
    if first > second:
        gone = trials["replica"] == 1
        assert set(trials["status"][gone]) <= {
            "done",
            "stopped",
            "failed",
            "rejected",
            "unfinished",
            "dropped",
        }
    else:
        new = trials["round"][(trials["replica"] == 1) & np.isfinite(trials["t_start"])]
        assert new.min() == 1


@pytest.mark.full
def test_another_mpi(tmp_path: Path) -> None:
    if not launch.available("openmpi"):
        pytest.skip("there is no environment for openmpi: see bin/test")
    folder = tmp_path / "run"
    before = kill_when(has_ended_and_runs, 3, folder, seconds=20)
    ended = resume(3, folder, mpi="openmpi")
    assert_goes_on(before, ended)
    one, other = ended.table("segments")["mpi"].tolist()
    assert "MPICH" in one and "Open MPI" in other


@pytest.mark.full
def test_a_drained_run_goes_on_and_may_be_longer(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    drained = runs.run_until(lambda run: len(run.epochs) >= 3, 3, folder, SMALL)
    assert drained.code == 4, drained.text()
    before = journaled(folder)
    rows = len(before.epochs)
    again = resume_until(
        lambda run: len(run.segments) == 2 and len(run.epochs) > rows, 3, folder, "--time-limit", "3601"
    )
    assert again.code == 4, again.text()
    verdict = judge(again.result)
    assert verdict.valid and verdict.segments == 2, verdict.reasons
    table = again.table("segments")
    assert table["end"].tolist() == ["drained", "drained"] and table["time_limit"].tolist() == [
        3600.0,
        3601.0,
    ]
    assert before.core_seconds == table["t_end"][0]
