# SPDX-License-Identifier: Apache-2.0
"""The place of each rank: nodes, roles and replicas, from all ranks' host names and shared-memory groups.

Pure, and the same on all ranks: every rank computes the whole table from the same gathered facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiperf_mpi.parallel.launch.launcher import LaunchError

COORDINATOR = "coordinator"
TRAINER = "trainer"
GENERATOR = "generator"


@dataclass(frozen=True, slots=True)
class Place:
    """One rank's place.

    On the coordinator `node`, `node_rank`, `replica` and `queue_group` are -1; on a generator `replica` is.

    A queue group is a node, or the nodes that a replica spans; its number is that of its first node. Its
    generators serve its replicas, `queue_group_replicas`; their first trainers are all on that first node.
    `replica_rank` is the index of a trainer in its replica, -1 for other roles.
    """

    rank: int
    host: str
    role: str
    node: int
    node_rank: int
    replica: int
    queue_group_replicas: tuple[int, ...]
    replica_rank: int = -1
    queue_group: int = -1


def arrange(
    hosts: Sequence[str],
    groups: Sequence[int],
    ranks_per_node: int = 0,
    trainers_per_node: int = 1,
    trainers_per_replica: int = 1,
) -> tuple[Place, ...]:
    """Return the place of every rank.

    Arguments:
        hosts: host name of each rank.
        groups: a number for each rank, equal on exactly those ranks that MPI finds on one shared memory; the
            number of rank 0 is not read.
        ranks_per_node: K > 0 cuts ranks 1.. into blocks of K instead; the last block may be smaller.
        trainers_per_node: ranks of a node that own accelerators; the rest generate. A node with fewer ranks
            has trainers only.
        trainers_per_replica: trainers, neighbours in the order of nodes, that train each candidate together.

    Raises LaunchError where no rank can train, or where the groups disagree with the host names. Raises it
    also where a block of K spans two hosts, or where the trainers do not make whole replicas.
    """
    size = len(hosts)
    if size < 2:
        raise LaunchError(f"{size} rank: a run needs at least 2, one to keep the history and one to train")
    if ranks_per_node < 0 or trainers_per_node < 1:
        raise LaunchError(
            f"ranks per node is {ranks_per_node} and trainers per node {trainers_per_node}, but they must "
            "be at least 0 and 1"
        )

    # Nodes are numbered by their lowest rank; nothing assumes that a node's ranks follow one another.
    workers = range(1, size)
    keys = (
        [(rank - 1) // ranks_per_node for rank in workers] if ranks_per_node else [groups[r] for r in workers]
    )
    members: dict[int, list[int]] = {}
    for rank, key in zip(workers, keys, strict=True):
        members.setdefault(key, []).append(rank)
    nodes = list(members.values())
    _check_hosts(hosts, nodes, ranks_per_node)

    counts = [min(trainers_per_node, len(ranks)) for ranks in nodes]
    _check_replicas(counts, trainers_per_replica)
    places, trainer = [Place(0, hosts[0], COORDINATOR, -1, -1, -1, ())], 0
    queue_group, served = 0, tuple[int, ...]()
    for index, (ranks, trainers) in enumerate(zip(nodes, counts, strict=True)):
        teams = [divmod(number, trainers_per_replica) for number in range(trainer, trainer + trainers)]
        if first := tuple(replica for replica, place in teams if place == 0):
            queue_group, served = index, first
        for local, rank in enumerate(ranks):
            role, (replica, place) = (TRAINER, teams[local]) if local < trainers else (GENERATOR, (-1, -1))
            places.append(Place(rank, hosts[rank], role, index, local, replica, served, place, queue_group))
        trainer += trainers
    return tuple(sorted(places, key=lambda place: place.rank))


def _check_replicas(trainers: Sequence[int], trainers_per_replica: int) -> None:
    """Raise LaunchError unless replicas of several trainers divide a node, or are whole nodes."""
    each = trainers_per_replica
    if each == 1:
        return
    one, total = trainers[0], sum(trainers)
    if each < 1 or set(trainers) != {one} or total % each or (one % each and each % one):
        raise LaunchError(
            f"{total} trainers on {len(trainers)} nodes ({_few(trainers)} each) do not make whole replicas "
            f"of {each}: choose parallel.trainers_per_replica so that it divides the trainers of a node, or "
            "is a multiple of them that divides all, and give every node as many ranks"
        )


def _check_hosts(hosts: Sequence[str], nodes: Sequence[Sequence[int]], ranks_per_node: int) -> None:
    """Raise LaunchError where a node spans hosts or, without `ranks_per_node`, a host has two nodes."""
    seen: dict[str, Sequence[int]] = {}
    for ranks in nodes:
        names = sorted({hosts[rank] for rank in ranks})
        if len(names) > 1:
            raise LaunchError(
                f"ranks {_few(ranks)} make one node, but are on the hosts {', '.join(names[:4])}. "
                + (
                    f"--ranks-per-node {ranks_per_node} counts from rank 1 on and must not cut across "
                    "hosts: choose another number, or leave it out"
                    if ranks_per_node
                    else "Give every host its own name, or pass --ranks-per-node K to cut the ranks into "
                    "nodes of K"
                )
            )
        other = seen.setdefault(names[0], ranks)
        if other is not ranks and not ranks_per_node:
            raise LaunchError(
                f"host {names[0]} has ranks {_few(other)} and {_few(ranks)}, but MPI finds no memory that "
                "they share. Either several machines have this name, or MPI was started so that it does not "
                "see the node (srun --mpi=pmix with Open MPI's wheel does that: use its mpirun). Pass "
                "--ranks-per-node K to cut ranks 1, 2, ... into nodes of K"
            )


def _few(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:6])
    return shown + (", ..." if len(ranks) > 6 else "")
