# SPDX-License-Identifier: Apache-2.0
"""Nodes, roles and replicas from host names and shared-memory groups."""

from __future__ import annotations

import pytest

from aiperf_mpi.parallel.launch.launcher import LaunchError
from aiperf_mpi.parallel.launch.placement import arrange


def roles(places: object) -> str:
    return "".join(place.role[0] for place in places)  # type: ignore[attr-defined]


def test_nodes_by_shared_memory() -> None:
    # Rank 0 shares host a with ranks 1 and 2; host b has 3, 5 and 6, host c has only rank 4.
    hosts, groups = ["a", "a", "a", "b", "c", "b", "b"], [0, 1, 1, 3, 4, 3, 3]
    places = arrange(hosts, groups)
    assert roles(places) == "ctgttgg"
    assert [place.node for place in places] == [-1, 0, 0, 1, 2, 1, 1]
    assert [place.node_rank for place in places] == [-1, 0, 1, 0, 0, 1, 2]
    assert [place.replica for place in places] == [-1, 0, -1, 1, 2, -1, -1]
    assert [place.queue_group_replicas for place in places] == [(), (0,), (0,), (1,), (2,), (1,), (1,)]
    assert [place.host for place in places] == hosts


def test_several_trainers_on_a_node() -> None:
    # Two trainers on each node; the node of rank 4 has one rank, which trains.
    hosts, groups = ["a", "a", "a", "b", "c", "b", "b"], [0, 1, 1, 3, 4, 3, 3]
    places = arrange(hosts, groups, trainers_per_node=2)
    assert roles(places) == "cttttt" + "g"
    assert [place.replica for place in places] == [-1, 0, 1, 2, 4, 3, -1]
    assert places[6].queue_group_replicas == (2, 3) and places[4].queue_group_replicas == (4,)


def test_nodes_by_number() -> None:
    hosts = ["a"] * 8
    places = arrange(hosts, list(range(8)), ranks_per_node=3)
    assert [place.node for place in places] == [-1, 0, 0, 0, 1, 1, 1, 2]
    assert roles(places) == "ctggtggt"


@pytest.mark.parametrize(
    ("hosts", "groups", "per_node", "words"),
    [
        (["a"], [0], 0, "needs at least 2"),
        (["a", "a", "b", "b"], [0, 1, 1, 1], 0, "ranks 1, 2, 3 make one node, but are on the hosts a, b"),
        (["a", "a", "a", "b"], [0, 1, 2, 3], 0, "host a has ranks 1 and 2, but MPI finds no memory"),
        (["a", "a", "a", "b"], [0, 1, 1, 3], 3, "--ranks-per-node 3 counts from rank 1"),
        (["a", "a"], [0, 1], -1, "at least 0 and 1"),
    ],
)
def test_impossible_arrangements_are_refused(
    hosts: list[str], groups: list[int], per_node: int, words: str
) -> None:
    with pytest.raises(LaunchError, match=words):
        arrange(hosts, groups, per_node)


def test_many_ranks_are_arranged_quickly() -> None:
    # 5000 hosts with 4 ranks each, in the order of a round-robin launch; every rank computes this once.
    hosts = [f"n{rank % 5000}" for rank in range(20001)]
    places = arrange(hosts, [rank % 5000 for rank in range(20001)])
    assert max(place.node for place in places) == 4999
    assert sum(place.role == "trainer" for place in places) == 5000


def test_trainers_of_one_replica_follow_one_another() -> None:
    # Coordinator, and two nodes of 4 ranks of which 2 train: one replica a node, then one of both nodes.
    hosts, groups = ["a"] * 5 + ["b"] * 4, [0, 1, 1, 1, 1, 5, 5, 5, 5]
    each = arrange(hosts, groups, trainers_per_node=2, trainers_per_replica=2)
    assert [place.replica for place in each] == [-1, 0, 0, -1, -1, 1, 1, -1, -1]
    assert [place.replica_rank for place in each] == [-1, 0, 1, -1, -1, 0, 1, -1, -1]
    assert [place.queue_group_replicas for place in each] == [(), *[(0,)] * 4, *[(1,)] * 4]

    both = arrange(hosts, groups, trainers_per_node=2, trainers_per_replica=4)
    assert [place.replica for place in both] == [-1, 0, 0, -1, -1, 0, 0, -1, -1]
    assert [place.replica_rank for place in both] == [-1, 0, 1, -1, -1, 2, 3, -1, -1]
    # The generators of both nodes serve the replica, whose queue is on the first one: they are one queue
    # group.
    assert [place.queue_group for place in each] == [-1, *[0] * 4, *[1] * 4]
    assert [place.queue_group for place in both] == [-1, *[0] * 8]
    assert [place.queue_group_replicas for place in both] == [(), *[(0,)] * 8]


@pytest.mark.parametrize(("per_node", "per_replica", "ranks"), [(2, 3, 4), (3, 2, 4), (2, 4, 3), (2, 2, 5)])
def test_replicas_that_are_not_whole_are_refused(per_node: int, per_replica: int, ranks: int) -> None:
    # Two nodes, the second of which has one rank where the last case says so; or two trainers for replicas of
    # four.
    second = 1 if ranks == 5 else 0 if ranks == 3 else 4
    hosts = ["a"] * 5 + ["b"] * second
    groups = [0, *[1] * 4, *[5] * second]
    with pytest.raises(LaunchError, match=f"do not make whole replicas of {per_replica}"):
        arrange(hosts, groups, trainers_per_node=per_node, trainers_per_replica=per_replica)
