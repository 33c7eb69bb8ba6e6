# SPDX-License-Identifier: Apache-2.0
"""Rows and stop messages: in order, bounded, counted by kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiperf_mpi.parallel.shared.messages import Kind
from aiperf_mpi.results.file.rows import ROW_MESSAGES
from tests.helpers.parallel.mpi import BOTH, Reports

ROWS = 900


def test_kinds_are_those_of_the_result() -> None:
    # What a replica does at the moment is for the view alone.
    assert tuple(kind.name.lower() for kind in Kind) == (*ROW_MESSAGES, "status")


@pytest.mark.mpi
@BOTH
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.full), 4])
def test_flow(mpi: str, ranks: int, run_program: Callable[..., Reports]) -> None:
    zero, *others = run_program(mpi, ranks, "shared/messages_flow", ROWS)
    n = len(others)
    assert zero["order"] and zero["empty"]
    # A signal to another rank is no row.
    assert zero["asked"][0] in range(1, n + 1) and zero["asked"][1] == "SIGTERM"

    # Of limit, drain and full, in this order, the highest holds: full comes too late to count.
    assert zero["own"] == ["DRAIN", 13.0]
    for report in others:
        assert not report["before"] and report["most"] <= report["bound"] + 1
        assert report["first"] == ["LIMIT", 12.5] and report["second"] == ["DRAIN", 13.0]
    assert zero["kinds"] == ["FINAL"] * n + ["RANK"] * n + ["SAMPLE"] * 3 * n
    assert zero["last"] == ["RANK"] * n

    # Every third row is a trial: 300 of 900; rows of 216 bytes, stop messages of 16, the last row of 8.
    epoch, trial, rank, final, sample, stop = (
        Kind.EPOCH,
        Kind.TRIAL,
        Kind.RANK,
        Kind.FINAL,
        Kind.SAMPLE,
        Kind.STOP,
    )
    for report in others:
        assert [report["sent"][k] for k in (epoch, trial, rank, final, sample, stop)] == [
            600,
            300,
            1,
            1,
            3,
            1,
        ]
        assert [report["sent_bytes"][k] for k in (epoch, trial, rank, final)] == [600 * 216, 300 * 216, 8, 0]
        assert (report["waiting"], report["left"], report["sent_bytes"][sample]) == (0, 2, 48)
        assert report["received"][stop] == 2 and report["received_bytes"][stop] == 32
    assert zero["received"] == [600 * n, 300 * n, n, n, 3 * n, n, 0]
    assert zero["sent"] == [0, 0, 0, 0, 0, 2 * n, 0] and zero["sent_bytes"][stop] == 32 * n


@pytest.mark.mpi
def test_a_rank_that_comes_too_late_joins_no_collective_of_the_others(
    mpi: str, run_program: Callable[..., Reports]
) -> None:
    # It does not know in which one they wait. Where two differ, Open MPI may end the job before the result
    # is written (MPI_ERR_TRUNCATE).
    _, waits, late = run_program(mpi, 3, "shared/late_rank")
    assert waits == {"limit": True, "owns": False}
    assert late == {"limit": False, "joined": True, "lowest": 0.25}
