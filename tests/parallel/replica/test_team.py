# SPDX-License-Identifier: Apache-2.0
"""Replicas of several processes: their clusters and agreements. Whole runs are in end_to_end."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aiperf_mpi.links.handshake import held_port
from aiperf_mpi.parallel.replica.team import Team
from aiperf_mpi.parallel.trainer.preparation import REJECTED_BY_PEER
from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.training.lockstep import BROKEN, GO
from aiperf_mpi.trials.record import CAUSE_BYTES

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("library", ["mpich", pytest.param("openmpi", marks=pytest.mark.full)])
def test_two_replicas_of_two_processes_reduce_apart(
    library: str, run_program: Callable[..., list[dict[str, Any]]]
) -> None:
    reports = run_program(library, 5, "replica/teams")
    assert [report["role"] for report in reports] == ["coordinator", *["trainer"] * 4]
    assert [(report["replica"], report["replica_rank"]) for report in reports[1:]] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    trainers = reports[1:]
    assert all(report["devices"] == [2, 1] for report in trainers)

    # Ranks 1 and 2 sum to 3, ranks 3 and 4 to 7; replica 1 stops before step 21, on both processes, replica 0
    # does not.
    for form in ("shard_map", "pmap"):
        assert [report[form] for report in trainers] == [[60, 180.0, 180.0, 180.0, 3.0]] * 2 + [
            [21, 147.0, 147.0, 147.0, 7.0]
        ] * 2
    assert max(report["begin"] for report in trainers) < min(report["end_time"] for report in trainers)

    # Each replica has its first trainer's record and the highest value, though its second process posts late
    # and they agree on steps meanwhile. The error is that of the process with an error.
    assert [report["record"] for report in trainers] == [[0, 7], [0, 7], [1, 7], [1, 7]]
    assert [report["values"] for report in trainers] == [[GO, BROKEN]] * 4
    # At the end the second trainer completes the agreements that only the first has posted, two of them.
    assert [report["settled"] for report in trainers] == [[4, True], [4, True]] * 2
    assert {report["cause"] for report in trainers} == {"OSError: disk"}


@pytest.mark.parametrize("library", ["mpich", pytest.param("openmpi", marks=pytest.mark.full)])
def test_two_trainers_prepare_alike_whatever_fails_on_one(
    library: str, run_program: Callable[..., list[dict[str, Any]]]
) -> None:
    reports = run_program(library, 2, "trainer/together")
    first, second = (report["ends"] for report in reports)
    assert len(first) == len(second) == 10 and reports[0]["posted"] == reports[1]["posted"]

    # Both are ready, at the first try or, where one of them lacked memory, at the second.
    for case, tries in ((0, 1), (1, 2), (2, 2), (3, 2), (9, 1)):
        assert first[case] == second[case] == ["", "NoneType", True, tries], case

    # Both fail, each with its own error or with FailedElsewhere; both reject, with a reason or for the
    # other's.
    assert [first[4][:3], second[4][:3]] == [["", "FailedElsewhere", False], ["", "OSError", False]]
    assert (
        [first[8][1], second[8][1]] == ["ValueError", "RuntimeError"] and not first[8][2] and not second[8][2]
    )
    own = ["rank 0's reason", "rank 1's reason"]
    assert [first[5][0], second[5][0]] == [own[0], REJECTED_BY_PEER]
    assert [first[6][0], second[6][0]] == [REJECTED_BY_PEER, own[1]] and len(REJECTED_BY_PEER) <= CAUSE_BYTES
    assert [first[7][0], second[7][0]] == own

    # The first one records its reason; a reason that only the other has is on its standard error, once.
    rejections = [
        [line for line in report["stderr"].splitlines() if "is rejected" in line] for report in reports
    ]
    assert rejections == [[], [f"aiperf_mpi: rank 1 on here: trial 6 is rejected: {own[1]}"]]


@pytest.mark.parametrize("library", ["mpich", pytest.param("openmpi", marks=pytest.mark.full)])
def test_two_trainers_stop_at_the_batch_that_one_cannot_read(
    library: str, run_program: Callable[..., list[dict[str, Any]]]
) -> None:
    """In the last validation, the devices of one would wait for the other's part of the batch."""
    first, second = (report["ends"] for report in run_program(library, 2, "replica/reads"))
    own = "OSError: a shard cannot be read"
    other = "FailedElsewhere: another trainer of the replica could not read the images"
    assert first == [[[0, 1, 2], ""], [[0], own], [[0], other]]
    assert second == [[[0, 1, 2], ""], [[0], other], [[0], own]]


def test_a_clusters_port_is_held_until_its_service_binds_it() -> None:
    with held_port() as port, held_port() as other:
        # Another program cannot bind it, on either family or on one address, and gets another free port.
        both = socket.has_dualstack_ipv6()
        asks = [
            (socket.AF_INET, ""),
            (socket.AF_INET, "127.0.0.1"),
            *([(socket.AF_INET6, "::")] if both else []),
        ]
        for family, address in asks:
            with socket.socket(family) as taker, pytest.raises(OSError, match="Address already in use"):
                taker.bind((address, port))
        assert other != port
        # A socket that shares it, as JAX's service does, binds it meanwhile, and listens after the holder is
        # closed.
        service = socket.socket(socket.AF_INET6 if both else socket.AF_INET)
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        service.bind(("::" if both else "", port))
        service.listen()
    with service, socket.create_connection(("127.0.0.1", port), timeout=10):
        pass


def test_waiting_for_another_trainer_is_communication() -> None:
    # The other trainer comes after 50 tests, which are a millisecond apart after the spin.
    class Late:
        size, rank = 2, 0

        def Iallreduce(self, mine: Any, highest: Any, op: Any) -> Any:
            looks, highest[0][0] = itertools.count(), mine[0][0]
            return SimpleNamespace(Test=lambda: time.sleep(1e-4) or next(looks) >= 50)

    timer, comm = PhaseTimer(), cast(Any, Late())
    timer.switch("train")
    assert Team(comm, timer).agree(2) == 2 and timer.phase == "train"
    assert timer.seconds["communicate"] >= 0.04


def test_a_trainer_alone_agrees_with_itself() -> None:
    team = Team(None)
    assert team.leads and team.agree(2) == 2 and team.cause(ValueError("own")) == "ValueError: own"
