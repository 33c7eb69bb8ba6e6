# SPDX-License-Identifier: Apache-2.0
"""The history window under load: nothing lost, nothing torn, with a busy target, a dead writer, across a
network."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiperf_mpi.trials.footprint import history_bytes, mirror_bytes
from tests.helpers.parallel.mpi import BOTH, NETWORKS, Reports, require, several_hosts


def assert_whole(reports: Reports, appends: int) -> None:
    """Check that every rank sees every append exactly once, in the slot that its writer got."""
    writers = reports[0]["writers"]
    for rank, report in enumerate(reports):
        for repeat, run in enumerate(report["runs"]):
            where = f"rank {rank}, repeat {repeat}: {run}"
            assert run["rows"] == writers * appends, where
            assert run["lost"] == run["twice"] == run["wrong"] == run["elsewhere"] == 0, where


@pytest.mark.mpi
@BOTH
@pytest.mark.parametrize("storms", [8, pytest.param(20, marks=pytest.mark.full)])
def test_storms_of_four_ranks_lose_and_tear_nothing(
    mpi: str, storms: int, run_program: Callable[..., Reports]
) -> None:
    reports = run_program(mpi, 4, "shared/append_storm", storms, 200, 0, "mirror")
    assert len(reports[0]["runs"]) == storms
    assert_whole(reports, 200)


@pytest.mark.mpi
@pytest.mark.full
@pytest.mark.parametrize("launch", range(20))
def test_storms_of_separate_launches(mpi: str, launch: int, run_program: Callable[..., Reports]) -> None:
    assert_whole(run_program(mpi, 4, "shared/append_storm", 3, 500, 0, "mirror"), 500)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, 2])
def test_storm_of_few_ranks(mpi: str, ranks: int, run_program: Callable[..., Reports]) -> None:
    assert_whole(run_program(mpi, ranks, "shared/append_storm", 3, 200, 0, "mirror"), 200)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.full), 4])
def test_a_busy_target_delays_no_rank(mpi: str, ranks: int, run_program: Callable[..., Reports]) -> None:
    # Rank 0 computes for 3 s without entering MPI. 100 appends take milliseconds; waiting for it would take 3
    # s.
    reports = run_program(mpi, ranks, "shared/append_storm", 1, 100, 3, "mirror")
    assert_whole(reports, 100)
    assert reports[0]["runs"][0]["seconds"] >= 3
    assert all(report["runs"][0]["seconds"] < 2.5 for report in reports[1:])


@pytest.mark.mpi
def test_a_node_fetches_each_summary_once(mpi: str, run_program: Callable[..., Reports]) -> None:
    # 3 ranks of one node read 4 x 200 rows: 800 summaries for the node, and 800 records for each rank.
    with_mirror = run_program(mpi, 4, "shared/append_storm", 1, 200, 0, "mirror")
    fetched = sum(report["runs"][0]["fetched"] for report in with_mirror[1:])
    assert 4 * 800 <= fetched < 4.2 * 800
    alone = run_program(mpi, 4, "shared/append_storm", 1, 200, 0, "alone")
    assert sum(report["runs"][0]["fetched"] for report in alone[1:]) == 6 * 800


@pytest.mark.mpi
@pytest.mark.parametrize("network", ["ofi", pytest.param("ucx", marks=pytest.mark.full)])
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.full), 4])
def test_storm_across_a_network(
    mpich: str, network: str, ranks: int, run_program: Callable[..., Reports]
) -> None:
    # First the control: the target leaves MPI for 0.4 s, 0.02 s before each operation, so that it must wait.
    control = run_program(mpich, 2, "shared/sleeping_target", env=NETWORKS[network])
    waited = control[1]["seconds"]
    assert set(waited) == {"get", "put", "fetch_and_add", "compare_and_swap", "words"}
    assert min(waited.values()) > 0.3, f"{network} does not cross a network: {waited}"

    # Ranks that cannot share memory read for themselves.
    assert_whole(
        run_program(mpich, ranks, "shared/append_storm", 2, 60, 0, "alone", env=NETWORKS[network]), 60
    )


@pytest.mark.mpi
def test_storm_across_hosts(run_program: Callable[..., Reports]) -> None:
    # Open MPI on hosts that are one machine by other names: its operations go over TCP and wait for their
    # target.
    openmpi = require("openmpi")
    control = run_program(openmpi, 2, "shared/sleeping_target", launcher=several_hosts(openmpi, 2, 1))
    assert min(control[1]["seconds"].values()) > 0.3
    launcher = several_hosts(openmpi, 2, 2)
    assert_whole(run_program(openmpi, 4, "shared/append_storm", 1, 20, 0, "alone", launcher=launcher), 20)


@pytest.mark.mpi
def test_the_control_detects_shared_memory_and_a_network(
    mpi: str, run_program: Callable[..., Reports]
) -> None:
    waited = run_program(mpi, 2, "shared/sleeping_target")[1]["seconds"]
    assert max(waited.values()) < 0.3


@pytest.mark.mpi
def test_a_dead_writer_and_reader_delay_no_rank(mpi: str, run_program: Callable[..., Reports]) -> None:
    reports = run_program(mpi, 4, "shared/dead_writer")
    zero, one, *others = reports

    # Slot 0 is drawn by rank 1, 1 and 2 are committed by ranks 2 and 3: none of them is visible before the
    # lease.
    assert [report["hidden"] for report in reports] == [0, 0, 0, 0]
    assert zero["early"] == [] and zero["abandoned"] == [0] and zero["again"] == []
    assert one["commit"] is False and one["appended"] == 3
    assert all(report["kinds"] == [3, 1, 1, 1] and report["same"] for report in reports)
    assert zero["committed"] == [1, 2, 3]

    # Rank 1 keeps the lock; after the lease the others read past it.
    assert one["locked"] is True
    assert all(report["blind"] == 4 and report["seeing"] == 5 for report in others)


@pytest.mark.mpi
def test_the_history_of_a_resumed_run_is_as_it_was(mpi: str, run_program: Callable[..., Reports]) -> None:
    assert all(report["done"] for report in run_program(mpi, 2, "shared/restored_history"))


def test_bytes_of_the_windows() -> None:
    # Counter's line 64, then 8 + 32 + 256 bytes for each slot; the mirror has a line of 64 and 32 for each
    # slot.
    assert history_bytes(1000) == 64 + 1000 * (8 + 32 + 256)
    assert mirror_bytes(1000) == 64 + 1000 * 32
