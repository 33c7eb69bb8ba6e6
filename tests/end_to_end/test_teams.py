# SPDX-License-Identifier: Apache-2.0
"""Replicas of several processes: two of two each under one mpirun, each with its own all-reduce."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from aiperf_mpi import config as configuration
from aiperf_mpi.data.catalogue import open_dataset
from aiperf_mpi.data.loader import train_batches, val_batches
from aiperf_mpi.results import journal
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.run import Run
from aiperf_mpi.search.architecture import Architecture
from aiperf_mpi.search.budget import learning_rate
from aiperf_mpi.search.record import Candidate
from aiperf_mpi.search.streams import AUGMENT, INIT, stream
from aiperf_mpi.system.phases import PhaseTimer
from aiperf_mpi.training.compile import compile_steps
from aiperf_mpi.training.fit import FitSettings, Training
from aiperf_mpi.training.initial import initial_variables
from aiperf_mpi.training.step import StepSettings
from tests import launch
from tests.end_to_end import runs

pytestmark = pytest.mark.mpi

#: Four trainers with a device each, two by two; networks of one block, so that they compile quickly.
TEAMS = ("parallel.host_devices=4", "parallel.trainers_per_node=4", "parallel.trainers_per_replica=2",
         "model.blocks=[1]", "model.width=2", "data.image_size=8", "search.max_parameters=2000",
         "train.batch_per_device=8", "hpo.enabled=false")  # fmt: skip

#: What goes wrong: in replica 1 the second of its two processes raises, in replica 0 a device loses a bit.
FAULTS = ("fault.raise_in_round=1", "fault.raise_replica=1", "fault.raise_trainer=1", "fault.disturb_in_round=2",
          "fault.disturb_replica=0")  # fmt: skip

#: Programs that are compiled in less time, and compute the same but for rounding.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}



def enough(run: Run) -> bool:
    """Both replicas have trained a candidate behind the one that failed."""
    records = dict(zip(run.slots, run.records, strict=True))
    ended = (records[trial] for trial in run.trials["trial_id"].tolist())
    return {(0, 1), (0, 2), (1, 1), (1, 2)} <= {(int(r["replica"]), int(r["round"])) for r in ended}


def alone(ended: runs.Ended) -> list[tuple[float, float, float]]:
    """Training loss, validation loss and error of the first trial's epochs, trained again in this process: one device
    that accumulates what the two of replica 0 have each."""
    run = journal.replay(ended.folder / "journal.jsonl")
    config = configuration.from_toml(run.header.config_toml)
    candidate = Candidate.from_record(runs.trained(run)[0], Architecture(config.base), 0)
    dataset, batch = open_dataset(config), 2 * candidate.batch_per_device
    settings = StepSettings(batch, accumulate=2, mean=dataset.mean, deviation=dataset.deviation)
    compiled = compile_steps(candidate.architecture, settings, jax.devices()[:1])
    variables = initial_variables(candidate.architecture, stream(INIT, candidate.seed), config.model.zero_gamma)
    epochs = int(np.sum(run.epochs["trial_id"] == 0))
    training = Training(
        compiled, compiled.start(variables, stream(AUGMENT, candidate.seed)),
        lambda epoch: train_batches(dataset, candidate.seed, epoch, 1, batch),
        lambda: val_batches(dataset, 1, batch),
        FitSettings(epochs, epochs, lambda epoch: learning_rate(config.train.lr, epoch, config.train.epochs)),
        timer=PhaseTimer(), poll=lambda: False,
    )  # fmt: skip
    return [(row.train_loss, row.val_loss, row.val_error) for row in training]


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_two_replicas_of_two_processes(mpi: str, tmp_path: Path) -> None:
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi} ({launch.launcher(mpi)}): see bin/test")
    ended = runs.run_until(enough, 6, tmp_path / "run", (*TEAMS, *FAULTS), mpi=mpi, env=QUICK, timeout=450)
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

    # Each replica's rows come from one process, and count what both trained; both were at work at the same time.
    whole = (epochs["partial"] == 0) & np.isin(epochs["trial_id"], trials["trial_id"][[found[0, 1], found[1, 2]]])
    assert set(epochs["train_samples"][whole]) == {256} and set(epochs["val_samples"][whole]) == {60}
    assert len({(t, e) for t, e in zip(epochs["trial_id"], epochs["epoch"], strict=True)}) == len(epochs["epoch"])
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
