# SPDX-License-Identifier: Apache-2.0
"""Claims over all ranks at once: one winner for each key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from aiperf_mpi.trials.footprint import claims_bytes
from tests.helpers.parallel.mpi import NETWORKS, Reports


def assert_one_winner(reports: Reports, keys: int) -> None:
    for race in zip(*(report["won"] for report in reports), strict=True):
        winners = Counter(key for won in race for key in won)
        assert len(winners) == keys and set(winners.values()) == {1}


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.full), 4])
def test_each_key_has_one_winner(mpi: str, ranks: int, run_program: Callable[..., Reports]) -> None:
    reports = run_program(mpi, ranks, "shared/claims_race", 500, 5)
    assert_one_winner(reports, 500)
    # 5 races of all ranks for 500 keys; the winners release their keys after each race but the last.
    assert sum(report["claimed"] for report in reports) == 2500
    assert sum(report["refused"] for report in reports) == 2500 * (ranks - 1)
    assert sum(report["released"] for report in reports) == 2000

    # A table that is half full takes about 1.5 probes for a key that is there (Knuth, linear probing), one
    # more for the state of a key that was found: 4 for each of the calls is a wide bound.
    calls = 2500 * ranks + 2000
    assert sum(report["probes"] for report in reports) < 4 * calls


@pytest.mark.mpi
def test_each_key_has_one_winner_across_a_network(mpich: str, run_program: Callable[..., Reports]) -> None:
    control = run_program(mpich, 2, "shared/sleeping_target", env=NETWORKS["ofi"])
    assert min(control[1]["seconds"].values()) > 0.3
    assert_one_winner(run_program(mpich, 4, "shared/claims_race", 40, 3, env=NETWORKS["ofi"]), 40)


def test_bytes_of_the_table() -> None:
    # A key and a state of 8 bytes each.
    assert claims_bytes(1000) == 16000
