# SPDX-License-Identifier: Apache-2.0
"""The time between candidates, from rows with known numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.gaps import gaps
from aiperf_mpi.results.file.rows import PHASES
from aiperf_mpi.results.judge.judge import judge_file
from aiperf_mpi.results.report.text import text_report
from tests.helpers.results.changes import written
from tests.helpers.results.example_run import Example, example_run


def example() -> Example:
    """Return a run of two replicas with three trials of 3 s each; first steps are 0.5 s after the starts, and
    the last trial is cut half a second early. Trainers trained for 5 s, validated for 1.4, and waited for
    data in the rest of their epochs."""
    made = example_run()
    train, validate, data = (PHASES.index(name) for name in ("train", "validate", "data"))
    for row in made.ranks:
        if row["role"] == b"trainer":
            seconds = row["phase_seconds"]
            busy = seconds[train] + seconds[validate]
            seconds[train], seconds[validate], seconds[data] = 5.0, 1.4, busy - 6.4
    return made


def test_gaps_and_shares_of_a_run(tmp_path: Path) -> None:
    result, verdict = judge_file(written(example(), tmp_path))
    assert verdict.valid, verdict.reasons
    for number, replica in enumerate(gaps(Evidence(result))):
        assert (replica.replica, replica.trials) == (number, 3)
        # Trials end at 3 and 6; the next ones' first steps are at 3.5 and 6.5.
        assert replica.seconds == pytest.approx([0.5, 0.5])
        # From 0.5 to 8.5, of which 6.4 in training and validation.
        assert replica.share == pytest.approx(6.4 / 8.0)
        assert replica.prepared == pytest.approx(0.3)

    text = text_report(tmp_path / "result.h5")
    line = next(
        line for line in text[text.index("Between candidates") :].splitlines() if line.split()[:1] == ["0"]
    )
    assert line.split() == ["0", "3", "0.500", "0.500", "0.3", "80.0%"]


def test_a_trial_of_which_nothing_counts_leaves_its_gap_unknown(tmp_path: Path) -> None:
    made = example()
    gone = made.epochs["trial_id"] == made.slots[2]
    trial = int(made.trials["trial_id"][2])
    made.epochs = made.epochs[made.epochs["trial_id"] != trial]
    assert gone.any()
    result, _ = judge_file(written(made, tmp_path))
    seconds = [replica.seconds for replica in gaps(Evidence(result)) if len(replica.seconds) == 2]
    assert sum(math.isnan(gap) for replica in seconds for gap in replica) == 1
    assert "cannot be shown" not in text_report(tmp_path / "result.h5")
