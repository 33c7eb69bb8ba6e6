# SPDX-License-Identifier: Apache-2.0
"""Counts in a real run: a wrong one, and a step that does more than its network, are found before any
training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.parallel.coordinator.progress import LOST_IN_A_ROW
from tests.helpers import launch
from tests.helpers.end_to_end import runs

pytestmark = pytest.mark.mpi

PRODUCT = launch.ROOT / "tests" / "programs" / "crosscheck" / "one_more_product.py"


def test_tampered_count_is_rejected(tmp_path: Path) -> None:
    """One candidate of round 2 states one operation too many: it is rejected with both numbers, its round
    refilled."""
    ended = runs.run_until(
        lambda run: any(record["round"] >= 2 for record in runs.trained(run).values()),
        3,
        tmp_path / "run",
        ("fault.tamper_in_round=2",),
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    trials = ended.table("trials")
    rejected = np.flatnonzero(trials["status"] == "rejected")
    assert len(rejected) == 1, list(zip(trials["status"], trials["cause"], strict=True))
    row = rejected[0]
    assert (
        trials["round"][row] == 2 and trials["train_samples"][row] == 0 and trials["ops_credited"][row] == "0"
    )

    # Both numbers are recorded: what the record stated, one too many, and what the tables say.
    stated, counted = (int(word) for word in trials["cause"][row].split() if word.isdigit())
    assert trials["cause"][row].startswith("train_ops") and stated == counted + 1
    trained = trials["round"][trials["train_samples"] > 0]
    assert 2 in trained and sorted(trained) == list(range(1, len(trained) + 1))

    report = [sys.executable, "-m", "aiperf_mpi", "report", str(ended.result)]
    shown = subprocess.run(report, capture_output=True, text=True, timeout=60).stdout
    assert "rejected" in shown and str(counted) in shown, shown


@pytest.mark.parametrize(
    "limit", [pytest.param(6, marks=pytest.mark.full), pytest.param(LOST_IN_A_ROW, marks=pytest.mark.full)]
)
def test_one_more_product_in_the_step_stops_the_run(limit: int, tmp_path: Path) -> None:
    """What is counted is the step that is trained: with one matrix product more in it, no candidate is
    trained, and the run ends before the node-hours are gone."""
    words = runs.arguments(tmp_path / "run", ("model.blocks=[1]",), seconds=300)
    done = launch.mpirun(3, [PRODUCT, *words[2:]], env={"LOST_IN_A_ROW": str(limit)}, timeout=200)
    ended = runs.Ended(done.returncode, done.stdout, done.stderr, tmp_path / "run")
    assert ended.code == 4, ended.text()
    assert "in a row were rejected" in ended.err and "by the tables" in ended.err
    trials = ended.table("trials")
    assert np.sum(trials["train_samples"]) == 0 and np.sum(trials["status"] == "rejected") >= limit
