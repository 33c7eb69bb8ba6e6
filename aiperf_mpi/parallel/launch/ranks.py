# SPDX-License-Identifier: Apache-2.0
"""The split of COMM_WORLD into roles, nodes, queue groups and replicas, and the check of shared memory."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import cast

from aiperf_mpi.parallel.launch.job import raise_alike
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.launch.placement import COORDINATOR, GENERATOR, TRAINER, Place, arrange
from aiperf_mpi.planning.shared_memory import FOLDER, judge


@dataclass(frozen=True, slots=True)
class Ranks:
    """The split of COMM_WORLD, as one rank sees it.

    Attributes:
        world, rank, size, host, role: COMM_WORLD, this rank in it, its size, host name and role.
        workers: all ranks but rank 0; None on rank 0.
        node: the ranks of this rank's node; None on rank 0.
        shared: whether the node's ranks can share memory. They may not where `ranks_per_node` cuts nodes that
            MPI does not see as one.
        node_index, node_rank, replica: -1 on rank 0; `replica` is -1 on a generator.
        n_nodes, n_replicas, n_generators: counts over the whole run.
        node_trainers: trainers of this node.
        queue_group: the ranks of this rank's node, or of all nodes that its replica spans.
        queue_group_shared: whether the ranks of the queue group can share memory.
        queue_group_replicas: the replicas for which the group's generators make candidates.
        queue_group_generators, queue_group_generator: generators of the group, and this rank's index among
            them (-1 on other roles).
        team: the trainers of this rank's replica; None where it has one trainer, and on other roles.
        replica_rank: this trainer's index in its replica, -1 on other roles.
        nodes_on_host: nodes on this host.
        with_coordinator: whether rank 0 is on this host.
        places: of all ranks.
    """

    world: MPI.Intracomm
    rank: int
    size: int
    host: str
    role: str
    workers: MPI.Intracomm | None
    node: MPI.Intracomm | None
    shared: bool
    node_index: int
    node_rank: int
    n_nodes: int
    replica: int
    node_trainers: int
    queue_group: MPI.Intracomm | None
    queue_group_shared: bool
    queue_group_replicas: tuple[int, ...]
    queue_group_generators: int
    queue_group_generator: int
    team: MPI.Intracomm | None
    replica_rank: int
    n_replicas: int
    n_generators: int
    nodes_on_host: int
    with_coordinator: bool
    places: tuple[Place, ...]

    @property
    def leads(self) -> bool:
        """Whether this is the first trainer of its replica."""
        return self.replica_rank == 0


@dataclass(frozen=True, slots=True)
class _Communicators:
    """The communicators of one rank; all None on rank 0. For the attributes see `Ranks`."""

    workers: MPI.Intracomm | None = None
    node: MPI.Intracomm | None = None
    shared: bool = False
    queue_group: MPI.Intracomm | None = None
    team: MPI.Intracomm | None = None


def split(
    world: MPI.Intracomm,
    ranks_per_node: int = 0,
    trainers_per_node: int = 1,
    host: str | None = None,
    trainers_per_replica: int = 1,
) -> Ranks:
    """Give every rank its role: rank 0 coordinates, the others train or generate by node.

    `trainers_per_node` ranks of each node train, `trainers_per_replica` of these together.
    `ranks_per_node` K > 0 cuts ranks 1.. into blocks of K instead of by shared memory. `host` is this rank's
    host name (for tests). Collective over `world`. Raises LaunchError alike on all ranks (see
    `placement.arrange`).
    """
    host = socket.gethostname() if host is None else host
    workers, group = _memory_group(world)
    facts = world.allgather((host, group))
    hosts, groups = [name for name, _ in facts], [number for _, number in facts]
    places = arrange(hosts, groups, ranks_per_node, trainers_per_node, trainers_per_replica)
    place = places[world.rank]
    peers = [p for p in places if p.queue_group == place.queue_group]
    spans = len({p.node for p in peers}) > 1
    generators = [p.rank for p in peers if p.role == GENERATOR]
    comms = _communicators(workers, place, group, spans, trainers_per_replica)

    return Ranks(
        world=world,
        rank=world.rank,
        size=world.size,
        host=host,
        role=place.role,
        workers=comms.workers,
        node=comms.node,
        shared=comms.shared,
        node_index=place.node,
        node_rank=place.node_rank,
        n_nodes=1 + max(p.node for p in places),
        replica=place.replica,
        queue_group=comms.queue_group,
        queue_group_shared=comms.shared and not spans,
        queue_group_replicas=place.queue_group_replicas,
        queue_group_generators=len(generators),
        queue_group_generator=generators.index(world.rank) if world.rank in generators else -1,
        node_trainers=sum(p.role == TRAINER and p.node == place.node for p in places),
        team=comms.team,
        replica_rank=place.replica_rank,
        n_replicas=sum(p.replica_rank == 0 for p in places),
        n_generators=sum(p.role not in (TRAINER, COORDINATOR) for p in places),
        nodes_on_host=len({p.node for p in places if p.host == host and p.rank > 0}),
        with_coordinator=places[0].host == host,
        places=places,
    )


def _memory_group(world: MPI.Intracomm) -> tuple[MPI.Intracomm | None, int]:
    """Return a communicator of all ranks but 0, and the lowest rank that shares memory with this one.

    On rank 0 these are None and 0. Collective.
    """
    workers = cast(MPI.Intracomm, world.Split(MPI.UNDEFINED if world.rank == 0 else 0, world.rank))
    if world.rank == 0:
        return None, 0
    memory = workers.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank)
    group = memory.bcast(world.rank)
    memory.Free()
    return workers, group


def _communicators(
    workers: MPI.Intracomm | None, place: Place, group: int, spans: bool, trainers_per_replica: int
) -> _Communicators:
    """Make the communicators of this rank's node, queue group and replica. Collective over `workers`.

    `group` is the lowest rank that shares memory with this one; `spans` says whether the queue group has
    several nodes.
    """
    if workers is None:
        return _Communicators()

    # A node that was cut by number may consist of ranks that MPI cannot give a common window of memory.
    node = cast(MPI.Intracomm, workers.Split(place.node, place.rank))
    shared = node.allreduce(int(group == node.bcast(group)), MPI.MIN) == 1
    if trainers_per_replica == 1:
        return _Communicators(workers, node, shared, node)

    # Where a replica spans nodes, all of them together make its candidates.
    joined = cast(MPI.Intracomm, workers.Split(place.queue_group, place.rank))
    color = place.replica if place.role == TRAINER else MPI.UNDEFINED
    team = workers.Split(color, place.rank)
    return _Communicators(
        workers,
        node,
        shared,
        joined if spans else node,
        cast(MPI.Intracomm, team) if place.role == TRAINER else None,
    )


def check_shared_memory(ranks: Ranks, coordinator_bytes: int, node_bytes: int, folder: str = FOLDER) -> None:
    """Raise LaunchError on all ranks where a host's shared memory cannot hold the windows.

    `coordinator_bytes` are needed on rank 0's host, `node_bytes` by each node. Collective over the world.
    """
    need = node_bytes * ranks.nodes_on_host + (coordinator_bytes if ranks.with_coordinator else 0)
    finding = judge(need, folder)
    raise_alike(ranks.world, f"host {ranks.host}: {finding}" if finding.level == "fail" else None)
