# SPDX-License-Identifier: Apache-2.0
"""DOCSTRING."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import cast

from mpi4py import MPI

from aiperf_mpi.parallel.launch.job import raise_alike
from aiperf_mpi.parallel.launch.placement import COORDINATOR, GENERATOR, TRAINER, Place, arrange


@dataclass(frozen=True, slots=True)
class Ranks:
    """The split of COMM_WORLD, seen by one rank.

    `node` holds the ranks of this rank's node and `workers` all but rank 0; both are None on rank 0. `shared`
    says whether the node's ranks can share memory (not so where `ranks_per_node` cuts what MPI does not see
    as one node). `node_index`, `node_rank` and `replica` are -1 on rank 0, `replica` is -1 on a generator;
    `node_trainers` counts the node's trainers. `queue_group` holds the ranks of this rank's node, or of all
    nodes that its replica spans, and `queue_group_shared` says whether these can share memory; its generators
    make the candidates of its replicas, `queue_group_replicas`, and `queue_group_generator` is this one's
    place among them (-1 on others). `team` holds the trainers of this rank's replica, and is None where it
    has but one, and on ranks that are no trainers. `nodes_on_host` counts the nodes of this host,
    `with_coordinator` tells if rank 0 is there.
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
    node_size: int
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


def split(
    world: MPI.Intracomm,
    ranks_per_node: int = 0,
    trainers_per_node: int = 1,
    host: str | None = None,
    trainers_per_replica: int = 1,
) -> Ranks:
    """The roles of all ranks: rank 0 coordinates, the others by node, `trainers_per_node` of each train, and
    `trainers_per_replica` of these together.

    `ranks_per_node` K > 0 cuts ranks 1.. into blocks of K instead of by shared memory. `host` is this rank's
    host name (for tests). Collective over `world`; raises LaunchError alike on all ranks (see
    `placement.arrange`).
    """
    host = socket.gethostname() if host is None else host
    workers = cast(MPI.Intracomm, world.Split(MPI.UNDEFINED if world.rank == 0 else 0, world.rank))
    group = 0
    if world.rank > 0:
        memory = workers.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank)
        group = memory.bcast(world.rank)
        memory.Free()
    facts = world.allgather((host, group))
    hosts, groups = [name for name, _ in facts], [number for _, number in facts]
    places = arrange(hosts, groups, ranks_per_node, trainers_per_node, trainers_per_replica)

    # A node that was cut by number may consist of ranks that MPI cannot give a common window of memory.
    place, shared = places[world.rank], False
    node: MPI.Intracomm | None = None
    if world.rank > 0:
        node = cast(MPI.Intracomm, workers.Split(place.node, world.rank))
        shared = node.allreduce(int(group == node.bcast(group)), MPI.MIN) == 1

    # Where a replica spans nodes, all of them together make its candidates.
    queue_group, generators = (
        node,
        [p.rank for p in places if p.queue_group == place.queue_group and p.role == GENERATOR],
    )
    spans = len({p.node for p in places if p.queue_group == place.queue_group}) > 1
    if world.rank > 0 and trainers_per_replica > 1:
        joined = cast(MPI.Intracomm, workers.Split(place.queue_group, world.rank))
        queue_group = joined if spans else node

    # A replica of one trainer needs no communicator.
    team: MPI.Intracomm | None = None
    if world.rank > 0 and trainers_per_replica > 1:
        color = place.replica if place.role == TRAINER else MPI.UNDEFINED
        made = workers.Split(color, world.rank)
        team = cast(MPI.Intracomm, made) if place.role == TRAINER else None

    return Ranks(
        world=world,
        rank=world.rank,
        size=world.size,
        host=host,
        role=place.role,
        workers=workers if world.rank > 0 else None,
        node=node,
        shared=shared,
        node_index=place.node,
        node_rank=place.node_rank,
        node_size=node.size if node is not None else 0,
        n_nodes=1 + max(p.node for p in places),
        replica=place.replica,
        queue_group=queue_group,
        queue_group_shared=shared and not spans,
        queue_group_replicas=place.queue_group_replicas,
        queue_group_generators=len(generators),
        queue_group_generator=generators.index(world.rank) if world.rank in generators else -1,
        node_trainers=sum(p.role == TRAINER and p.node == place.node for p in places),
        team=team,
        replica_rank=place.replica_rank,
        n_replicas=sum(p.replica_rank == 0 for p in places),
        n_generators=sum(p.role not in (TRAINER, COORDINATOR) for p in places),
        nodes_on_host=len({p.node for p in places if p.host == host and p.rank > 0}),
        with_coordinator=places[0].host == host,
        places=places,
    )


def check_shared_memory(
    ranks: Ranks, coordinator_bytes: int, node_bytes: int, folder: str = "/dev/shm"
) -> None:
    """Raises LaunchError on all ranks where a host's shared memory cannot hold the windows.

    A window beyond it would end a rank by SIGBUS at the first touch, hours later perhaps. `coordinator_bytes`
    lie on rank 0's host, `node_bytes` on each node. Collective over the world.
    """
    need = node_bytes * ranks.nodes_on_host + (coordinator_bytes if ranks.with_coordinator else 0)
    message = None
    if os.path.isdir(folder):
        stat = os.statvfs(folder)
        free = stat.f_bavail * stat.f_frsize
        if need > free:
            mib = -(-need // 2**20)
            message = (
                f"host {ranks.host}: {folder} has {free / 2**20:.0f} MiB free, but the windows take {mib} "
                f"MiB. Enlarge "
                f"it (mount -o remount,size={2 * mib}m {folder}; in a container: docker run "
                f"--shm-size={2 * mib}m), "
                "or choose a smaller --set parallel.history_capacity="
            )
    raise_alike(ranks.world, message)
