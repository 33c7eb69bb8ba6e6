# SPDX-License-Identifier: Apache-2.0
"""Replicas of several processes: two of two each under one mpirun, each with its own all-reduce."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from aiperf_mpi.config import config as configuration
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.data.loader import train_batches, val_batches
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.judge.judge import judge
from aiperf_mpi.results.output import journal
from aiperf_mpi.streams import AUGMENT, INIT, stream
from aiperf_mpi.training.fit import FitSettings, Training
from aiperf_mpi.training.model.initial import initial_variables
from aiperf_mpi.training.settings import settings_of
from aiperf_mpi.training.steps.compile import compile_steps
from aiperf_mpi.trials.budget import learning_rate
from aiperf_mpi.trials.candidate import Candidate
from tests.helpers import launch
from tests.helpers.end_to_end import runs
from tests.helpers.end_to_end.runs import gaps

pytestmark = pytest.mark.mpi

#: What goes wrong: in replica 1 the second of its two processes raises, in replica 0 a device loses a bit.
FAULTS = (
    "fault.raise_in_round=1",
    "fault.raise_replica=1",
    "fault.raise_trainer=1",
    "fault.disturb_in_round=2",
    "fault.disturb_replica=0",
)

#: Programs that are compiled in less time, and compute the same but for rounding.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def enough(run: Run) -> bool:
    """Both replicas have trained a candidate after the one that failed."""
    records = dict(zip(run.slots, run.records, strict=True))
    ended = (records[trial] for trial in runs.ended(run)["trial_id"].tolist())
    return {(0, 1), (0, 2), (1, 1), (1, 2)} <= {(int(r["replica"]), int(r["round"])) for r in ended}


def alone(ended: runs.Ended) -> list[tuple[float, float, float]]:
    """Training loss, validation loss and error of the first trial's epochs, trained again in this process:
    one device that accumulates what the two of replica 0 have each."""
    run = journal.replay(ended.folder / "journal.jsonl")
    config = configuration.from_toml(run.header.config_toml)
    candidate = Candidate.from_record(runs.trained(run)[0], Architecture(config.base), 0)
    dataset, batch = open_dataset(config), 2 * candidate.batch_per_device
    settings = replace(settings_of(config, batch, dataset.mean, dataset.deviation), accumulate=2)
    compiled = compile_steps(candidate.architecture, settings, jax.devices()[:1])
    variables = initial_variables(
        candidate.architecture, stream(INIT, candidate.seed), config.model.zero_gamma
    )
    epochs = int(np.sum(run.epochs["trial_id"] == 0))
    training = Training(
        compiled,
        compiled.start(variables, stream(AUGMENT, candidate.seed)),
        lambda epoch: train_batches(dataset, candidate.seed, epoch, 1, batch),
        lambda: val_batches(dataset, 1, batch),
        FitSettings(epochs, epochs, lambda epoch: learning_rate(config.train.lr, epoch, config.train.epochs)),
        timer=PhaseTimer(),
        poll=lambda: False,
    )
    return [(row.train_loss, row.val_loss, row.val_error) for row in training]


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_two_replicas_of_two_processes(mpi: str, tmp_path: Path) -> None:
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi} ({launch.launcher(mpi)}): see bin/test")
    ended = runs.run_until(
        enough, 6, tmp_path / "run", (*runs.TEAMS, *FAULTS), mpi=mpi, env=QUICK, timeout=450
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    assert (ended.lines["replicas"], ended.lines["devices"], ended.lines["nodes"]) == ("2", "4", "1")
    assert judge(ended.result).valid

    # A process that raises, and a device that differs, fail their trial on both processes, and no other one.
    trials, epochs = ended.table("trials"), ended.table("epochs")
    begun = [i for i, start in enumerate(trials["t_start"]) if math.isfinite(start)]
    found = {(int(trials["replica"][i]), int(trials["round"][i])): i for i in begun}
    causes = {(1, 1): "RuntimeError: injected fault", (0, 2): "Disagreement: epoch 0, after its training"}
    for place, cause in causes.items():
        assert trials["status"][found[place]] == "failed" and trials["ops_credited"][found[place]] == "0"
        assert trials["cause"][found[place]].startswith(cause)
    for place in ((0, 1), (1, 2)):
        assert trials["status"][found[place]] in ("done", "stopped")
    assert sum(trials["status"] == "failed") == 2

    # Each replica's rows come from one process, and count what both trained; both were at work at the same
    # time.
    whole = (epochs["partial"] == 0) & np.isin(
        epochs["trial_id"], trials["trial_id"][[found[0, 1], found[1, 2]]]
    )
    assert set(epochs["train_samples"][whole]) == {256} and set(epochs["val_samples"][whole]) == {60}
    assert len({(t, e) for t, e in zip(epochs["trial_id"], epochs["epoch"], strict=True)}) == len(
        epochs["epoch"]
    )
    first, second = found[0, 1], found[1, 2]
    spans = [(trials["t_start"][i], trials["t_end"][i]) for i in (found[1, 1], second)]
    assert any(begin < trials["t_end"][first] and trials["t_start"][first] < end for begin, end in spans)

    # Every process has its row: two trainers of each replica, with a device each.
    ranks = ended.table("ranks")
    assert ranks["role"].tolist() == ["coordinator", *["trainer"] * 4, "generator"]
    assert ranks["replica"].tolist() == [-1, 0, 0, 1, 1, -1]
    assert all(device.startswith("1 x ") for device in ranks["device"][1:5])

    # The losses are those of one process with the same global batch: float32, over some 32 steps.
    own = epochs["trial_id"] == 0
    rows = zip(*(epochs[name][own] for name in ("train_loss", "val_loss", "val_error")), strict=True)
    for (train_loss, val_loss, val_error), expected in zip(rows, alone(ended), strict=True):
        assert train_loss == pytest.approx(expected[0], rel=1e-3)
        assert val_loss == pytest.approx(expected[1], rel=1e-2)
        assert val_error == pytest.approx(expected[2], abs=2 / 60)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_team_validates_best_weights_that_were_written_late(tmp_path: Path) -> None:
    """The first trainer cannot write the first trial's weights, which are the best ones at least for a
    while."""
    folder = tmp_path / "run"
    sets = (*runs.TEAMS, "parallel.host_devices=2", "parallel.trainers_per_node=2")
    job = runs.start(4, folder, sets, seconds=60, env=QUICK)
    limit = time.monotonic() + 200
    while not folder.is_dir() and job.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    blocked, path = folder / "checkpoints", folder / "journal.jsonl"
    blocked.write_text("a file where the folder should be")
    while (
        not (path.exists() and len(journal.replay(path).trials))
        and job.poll() is None
        and time.monotonic() < limit
    ):
        time.sleep(0.3)
    blocked.unlink()
    ended = runs.finish(job, folder, timeout=300)
    assert ended.code == 0 and ended.lines["status"] == "VALID", ended.text()
    trials = ended.table("trials")
    assert trials["status"][0] == "done" and trials["cause"][0].startswith(
        "its weights are not kept: File exists"
    )
    assert math.isfinite(float(ended.lines["error_final"])), ended.text()


#: A replica of two processes, whose trials last longer than it takes to make the next one ready.
AHEAD = (
    *runs.TEAMS,
    "parallel.host_devices=2",
    "parallel.trainers_per_node=2",
    "parallel.compile_ahead='on'",
    "train.round_epochs=[2]",
    "data.train_images=16384",
    "search.max_morphs=1",
    "fault.tamper_in_round=2",
    "fault.raise_in_round=4",
    "fault.raise_trainer=1",
)


@pytest.mark.full
@pytest.mark.timeout(700)
@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_a_team_makes_its_next_candidate_ready_ahead(mpi: str, tmp_path: Path) -> None:
    """Both processes prepare the same next one while they train: after a trial the devices wait for a few
    steps' time; one with a false count is rejected by both meanwhile, one that raises on one of them fails on
    both at its turn."""
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi} ({launch.launcher(mpi)}): see bin/test")
    ended = runs.run_until(
        lambda run: any(record["round"] >= 6 for record in runs.trained(run).values()),
        4,
        tmp_path / "run",
        AHEAD,
        mpi=mpi,
        env=QUICK | runs.COMPILER,
        timeout=550,
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    trials, ranks = ended.table("trials"), ended.table("ranks")
    assert ranks["replica"].tolist() == [-1, 0, 0, -1]
    compiled, found = trials["trace_seconds"] + trials["compile_seconds"], gaps(ended)
    print(f"\ngaps {found}\ncompiled in {compiled[np.isfinite(compiled)]}")
    assert len(found) >= 4 and np.nanmedian(found) < 0.1 * np.nanmedian(compiled), (found, compiled)

    # Tickets are trained in order, each once; the rejected one was filled again.
    trained = np.flatnonzero(np.isfinite(trials["t_start"]))
    rounds = trials["round"][trained[np.argsort(trials["t_start"][trained])]]
    assert list(rounds) == list(range(1, len(rounds) + 1))
    status = dict(zip(trials["round"][trained].tolist(), trials["status"][trained].tolist(), strict=True))
    assert status[4] == "failed" and status[3] == status[5] == "done"
    assert any(cause.startswith("RuntimeError: injected fault") for cause in trials["cause"])
    rejected = trials["status"] == "rejected"
    assert list(trials["round"][rejected]) == [2] and "by the tables" in trials["cause"][rejected][0]


@pytest.mark.full
@pytest.mark.timeout(500)
@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_generators_of_all_nodes_fill_a_replicas_queue(mpi: str, tmp_path: Path) -> None:
    """Two nodes of a trainer and a generator each, cut from this host, with one replica on both."""
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi} ({launch.launcher(mpi)}): see bin/test")
    sets = (
        *runs.TEAMS,
        "parallel.host_devices=1",
        "parallel.trainers_per_node=1",
        "parallel.ranks_per_node=2",
        "search.queue_depth=8",
    )
    ended = runs.run_until(
        lambda run: len(runs.ended(run)) >= 2 and len(run.records) >= 10,
        5,
        tmp_path / "run",
        sets,
        mpi=mpi,
        env=QUICK,
        timeout=350,
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    assert (ended.lines["replicas"], ended.lines["nodes"]) == ("1", "2")
    ranks, trials = ended.table("ranks"), ended.table("trials")
    assert ranks["role"].tolist() == ["coordinator", "trainer", "generator", "trainer", "generator"]
    assert ranks["node"].tolist() == [-1, 0, 0, 1, 1] and ranks["replica"].tolist() == [-1, 0, -1, 0, -1]

    # Both have put some of the candidates after the initial network, which is the first trainer's, into the
    # queue that is on the first node; their rounds are trained in order.
    carried = ended.table("messages")
    queued = (carried["kind"] == "candidate") & (carried["sent"] > 0)
    assert set(carried["rank"][queued].tolist()) == {1, 2, 4}, carried
    begun = np.argsort(trials["t_start"])[: np.count_nonzero(np.isfinite(trials["t_start"]))]
    assert trials["round"][begun].tolist() == list(range(1, len(begun) + 1))
