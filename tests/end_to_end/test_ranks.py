# SPDX-License-Identifier: Apache-2.0
"""Runs of other shapes than four ranks: two, three, and several nodes on one host."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.results.file.collector import Run
from tests.helpers import launch
from tests.helpers.end_to_end import runs

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize(
    ("ranks", "roles"),
    [
        (2, ["coordinator", "trainer"]),
        pytest.param(3, ["coordinator", "trainer", "generator"], marks=pytest.mark.full),
    ],
)
def test_few_ranks(ranks: int, roles: list[str], tmp_path: Path) -> None:
    """With two ranks the trainer makes its own candidates, in a thread."""
    ended = runs.run_until(lambda run: len(runs.trained(run)) >= 2, ranks, tmp_path / "run")
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    assert list(ended.table("ranks")["role"]) == roles
    trials = ended.table("trials")
    assert np.sum(trials["train_samples"] > 0) >= 2, trials


@pytest.mark.full
def test_the_time_of_all_ranks_lasts_to_the_last_step_of_a_drain(tmp_path: Path) -> None:
    """Steps under way when the run is to drain still count. The generator has nothing to do meanwhile."""
    sets = [
        "data.image_size=128",
        "data.train_images=4096",
        "train.batch_per_device=64",
        "hpo.enabled=false",
        "train.in_flight_steps=64",
    ]
    seen = list[float]()

    def in_the_second_epoch(run: Run) -> bool:
        """Give the second epoch the time to dispatch its steps."""
        if len(run.epochs):
            seen.append(time.monotonic())
        return bool(seen) and seen[-1] - seen[0] > 5

    ended = runs.run_until(in_the_second_epoch, 3, tmp_path / "run", sets)
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    wall, core = ended.table("ranks")["wall_seconds"], float(ended.lines["core_seconds"])
    assert (wall[1:] > core).all()

    # A rank that had no work at the end was idle.
    assert ended.table("ranks")["seconds_idle"][2] > 0


@pytest.mark.parametrize(
    ("mpi", "per_node", "replicas"),
    [
        ("mpich", 2, 3),
        pytest.param("openmpi", 3, 2, marks=pytest.mark.full),
        pytest.param("mpich", 3, 2, marks=pytest.mark.full),
        pytest.param("openmpi", 2, 3, marks=pytest.mark.full),
    ],
)
def test_replicas_share_the_history(mpi: str, per_node: int, replicas: int, tmp_path: Path) -> None:
    """Seven ranks, cut into nodes: replicas train children of trials that other replicas trained."""
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi} ({launch.launcher(mpi)}): see bin/test")

    def shared(run: Run) -> bool:
        """Every replica has trained, and one of them a child of another's trial."""
        trained = runs.trained(run)
        replica_of = {trial: int(record["replica"]) for trial, record in trained.items()}
        foreign = [
            t for t, r in trained.items() if replica_of.get(int(r["parent"]), replica_of[t]) != replica_of[t]
        ]
        return set(replica_of.values()) == set(range(replicas)) and bool(foreign)

    ended = runs.run_until(
        shared, 7, tmp_path / "run", runs.SMALLEST, "--ranks-per-node", str(per_node), mpi=mpi
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    assert ended.lines["replicas"] == ended.lines["nodes"] == str(replicas)

    trials = ended.table("trials")
    trained = np.isfinite(trials["t_start"]) & (trials["train_samples"] > 0)
    assert set(trials["replica"][trained]) == set(range(replicas)), ended.text()
    replica_of = dict(zip(trials["trial_id"], trials["replica"], strict=True))
    others = [
        t
        for t, p, r in zip(
            trials["trial_id"][trained], trials["parent_id"][trained], trials["replica"][trained], strict=True
        )
        if p >= 0 and replica_of[p] != r
    ]
    assert others, "no replica trained a child of another replica's trial"

    # Rounds count in each replica from 1, without a gap.
    for replica in range(replicas):
        rounds = sorted(trials["round"][trained & (trials["replica"] == replica)])
        assert rounds == list(range(1, len(rounds) + 1))

    # What crosses point-to-point messages: rows to rank 0, stop messages from it.
    messages = ended.table("messages")
    direct = messages["channel"] == "point-to-point"
    assert set(messages["kind"][direct]) <= {"epoch", "trial", "rank", "final", "sample", "stop"}
    to_rank_0 = direct & (messages["kind"] != "stop")
    assert np.sum(messages["sent"][to_rank_0 & (messages["rank"] == 0)]) == 0
    assert np.sum(messages["sent"][to_rank_0]) == np.sum(
        messages["received"][to_rank_0 & (messages["rank"] == 0)]
    )


@pytest.mark.full
def test_four_devices(tmp_path: Path) -> None:
    """One trainer drives four devices by pmap: its global batch is four times that of a device."""
    sets = (*runs.SMALLEST, "parallel.host_devices=4", "train.batch_per_device=8", "hpo.batches=[8]")
    ended = runs.run_until(lambda run: len(runs.trained(run)) >= 1, 3, tmp_path / "run", sets)
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    assert ended.lines["devices"] == "4"
    trials = ended.table("trials")
    assert set(trials["batch_global"]) == {32} and set(trials["batch_per_device"]) == {8}
    assert np.any(trials["train_samples"] > 0)


@pytest.mark.full
def test_two_trainers_on_a_node(tmp_path: Path) -> None:
    """Two trainers of one node are two replicas with their own queues; one generator serves both."""
    sets = ("parallel.trainers_per_node=2", "parallel.host_devices=2")
    ended = runs.run_until(
        lambda run: {int(record["replica"]) for record in runs.trained(run).values()} == {0, 1},
        4,
        tmp_path / "run",
        sets,
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    assert ended.lines["nodes"] == "1" and ended.lines["replicas"] == "2"
    trials = ended.table("trials")
    assert set(trials["replica"][trials["train_samples"] > 0]) == {0, 1}
