# SPDX-License-Identifier: Apache-2.0
"""The candidate queue: tickets in order, each accepted once, and no record torn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiperf_mpi.parallel.shared.slots import EMPTY, FILLING, Slot
from aiperf_mpi.trials.footprint import queue_bytes
from tests.helpers.parallel.mpi import NETWORKS, Reports, under_both


def assert_in_order(reports: Reports, trainers: int, tickets: int) -> None:
    """Check that each trainer accepted tickets 1, 2, ... in order, and a ticket again only after a rejection.
    No candidate came twice, and each record is the one that its generator published."""
    for report in reports[:trainers]:
        expected = 1
        for ticket, trial, replica, generator, accepted in report["taken"]:
            assert ticket == expected
            assert trial == replica << 32 | generator
            expected += accepted
        assert expected == tickets + 1
    trials = [row[1] for report in reports[:trainers] for row in report["taken"]]
    assert len(trials) == len(set(trials))


@pytest.mark.mpi
def test_transitions_of_one_queue(mpi: str, run_program: Callable[..., Reports]) -> None:
    assert run_program(mpi, 1, "shared/queue_moves")[0]["done"]


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("mpi", "ranks", "trainers", "depth", "memory"),
    under_both(
        (1, 1, 2, "shared"),
        (2, 1, 2, "shared"),
        (4, 1, 3, "shared"),
        (4, 2, 2, "shared"),
        (1, 1, 2, "apart"),
        (2, 1, 2, "apart"),
        (4, 1, 3, "apart"),
        (4, 2, 2, "apart"),
        openmpi=[(2, 1, 2, "shared"), (4, 2, 2, "shared"), (4, 1, 3, "apart")],
    ),
    indirect=["mpi"],
)
def test_storm(
    mpi: str, ranks: int, trainers: int, depth: int, memory: str, run_program: Callable[..., Reports]
) -> None:
    reports = run_program(mpi, ranks, "shared/queue_storm", trainers, 300, depth, memory)
    assert_in_order(reports, trainers, 300)

    # 1 in 7 candidates was rejected, so that the storm has rejections.
    rejected = sum(not row[4] for report in reports[:trainers] for row in report["taken"])
    assert rejected > 0 and sum(report["given_up"] for report in reports) > 0

    # With two generators or more, one of them stopped with a slot, which another one freed.
    assert sum(report["freed"] for report in reports) == (1 if ranks > trainers + 1 else 0)


@pytest.mark.mpi
def test_a_slot_has_one_owner(mpi: str, run_program: Callable[..., Reports]) -> None:
    reports = run_program(mpi, 4, "shared/queue_race", 1000)
    assert sum(report["refused"] for report in reports) > 0
    assert [report["total"] for report in reports] == [4000] * 4


@pytest.mark.mpi
def test_storm_across_a_network(mpich: str, run_program: Callable[..., Reports]) -> None:
    # A node whose ranks share no memory (--ranks-per-node where MPI sees no node) uses the same window.
    control = run_program(mpich, 2, "shared/sleeping_target", env=NETWORKS["ofi"])
    assert min(control[1]["seconds"].values()) > 0.3
    reports = run_program(mpich, 3, "shared/queue_storm", 1, 40, 2, "apart", env=NETWORKS["ofi"])
    assert_in_order(reports, 1, 40)


def test_a_word_holds_ticket_version_owner_and_state() -> None:
    # ticket 5 << 40 | version 7 << 16 | owner 9 << 4 | state 1
    slot = Slot(0, 5 << 40 | 7 << 16 | 9 << 4 | 1)
    assert (slot.ticket, slot.version, slot.owner, slot.state) == (5, 7, 9, FILLING)
    moved = slot.moved(EMPTY, ticket=8)
    assert (moved.ticket, moved.version, moved.owner, moved.state) == (8, 8, 9, EMPTY)
    wrapped = Slot(0, 1 << 40 | ((1 << 24) - 1) << 16 | 4095 << 4 | 3).moved(FILLING, owner=0)
    assert (wrapped.ticket, wrapped.version, wrapped.owner, wrapped.state) == (1, 0, 0, FILLING)


def test_bytes_of_a_queue() -> None:
    # A word of 8 bytes for each slot, and a record of 256 for each rank and slot.
    assert queue_bytes(2, 3) == 2 * 8 + 2 * 3 * 256
