# SPDX-License-Identifier: Apache-2.0
"""Stale candidates are replaced while they wait, without an effect on the trainer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiperf_mpi.parallel.generator.staleness import is_stale
from tests.helpers.parallel.mpi import Reports


def test_a_candidate_is_stale_past_its_share_of_known_trials() -> None:
    # More than 1.5 x 10 = 15 trials. The search begins with 3: one that knew fewer was chosen without it.
    assert [is_stale(10, finished, 1.5) for finished in (14, 15, 16)] == [False, False, True]
    assert [is_stale(0, finished, 1.5) for finished in (0, 1, 2, 3)] == [False, False, False, True]
    assert [is_stale(2, finished, 1e9) for finished in (2, 3, 4)] == [False, True, True]
    # One that knew 3: 1.5 x 3 = 4.5.
    assert [is_stale(3, finished, 1.5) for finished in (3, 4, 5)] == [False, False, True]


@pytest.mark.mpi
def test_step_by_step(mpi: str, run_program: Callable[..., Reports]) -> None:
    assert run_program(mpi, 1, "generator/replacement")[0]["done"]


#: One race by default, the others with --full; each step by step runs under both MPIs.
RACES = [
    ("mpich", 3, 16),
    pytest.param("mpich", 3, 40, marks=pytest.mark.full),
    pytest.param("mpich", 5, 40, marks=pytest.mark.full),
    pytest.param("openmpi", 3, 40, marks=pytest.mark.full),
    pytest.param("openmpi", 5, 40, marks=pytest.mark.full),
]


@pytest.mark.mpi
@pytest.mark.parametrize(("mpi", "ranks", "rounds"), RACES, indirect=["mpi"])
def test_against_a_trainer(mpi: str, ranks: int, rounds: int, run_program: Callable[..., Reports]) -> None:
    reports = run_program(mpi, ranks, "generator/replacement_race", rounds)
    taken, log = reports[1]["taken"], reports[0]

    # Each round once and in order, by candidates of that round; what was dropped was never taken, and has its
    # one end.
    assert [row[:2] for row in taken] == [[ticket, ticket] for ticket in range(1, rounds + 1)]
    dropped = set(log["dropped"])
    assert (
        not dropped & {row[2] for row in taken} and len(dropped) == len(log["dropped"]) and log["twice"] == 0
    )

    # No candidate is trained twice, and no dropped candidate's key is still claimed.
    keys = [log["keys"][str(row[2])] for row in taken]
    assert len(set(keys)) == rounds and log["held"] == 0

    # There was something to see.
    replaced = sum(report["replaced"] for report in reports[2:])
    assert replaced >= rounds // 4 and len(dropped) >= replaced
