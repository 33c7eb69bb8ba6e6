# SPDX-License-Identifier: Apache-2.0
"""Split the world, report each rank's place, and use the windows of the split. Arguments: folder, ranks per
node, trainers per node, "real" for the host's name or a number n for n invented ones (of the rank modulo
n)."""

import sys
import time

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.launch.ranks import split
from aiperf_mpi.parallel.shared import queue as queue_module
from aiperf_mpi.parallel.shared.history import WindowHistory
from tests.helpers.parallel.rows import proposed, report

folder, per_node, trainers, hosts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with job.job() as world:
    host = None if hosts == "real" else f"host{world.rank % int(hosts)}"
    ranks = split(world, per_node, trainers, host)

    # The history is the world's, the queues are the node's; where the node's ranks share no memory, each rank
    # reads for itself.
    history = WindowHistory(world, ranks.node if ranks.shared else None, 100)
    history.append(proposed(world.rank))
    wait(world.Ibarrier())
    history.refresh()
    published = []
    if ranks.node is not None:
        queues = queue_module.open_queues(
            ranks.node, ranks.node_trainers, ranks.node.size, shared=ranks.shared
        )
        for queue in queues:
            # The depth is the number of the node's ranks, so each rank gets a slot.
            while (slot := queue.reserve()) is None:
                time.sleep(0.001)
            queue.publish(slot, proposed(world.rank, slot.ticket), world.rank)
        wait(ranks.node.Ibarrier())
        if ranks.role == "trainer":
            queue = queues[ranks.queue_group_replicas.index(ranks.replica)]
            while (taken := queue.take()) is not None:
                published.append(int(taken.record["trial"]))
                queue.accept(taken)
    wait(world.Ibarrier())
    if ranks.node is not None:
        for queue in queues:
            queue.close()
    seen = sorted(int(row["replica"]) for row in history.records(range(len(history))))
    history.close()
    report(
        folder,
        world.rank,
        role=ranks.role,
        node=ranks.node_index,
        node_rank=ranks.node_rank,
        nodes=ranks.n_nodes,
        replica=ranks.replica,
        replicas=ranks.n_replicas,
        queue_group_replicas=ranks.queue_group_replicas,
        generators=ranks.n_generators,
        queue_group_generators=ranks.queue_group_generators,
        shared=ranks.shared,
        nodes_on_host=ranks.nodes_on_host,
        with_coordinator=ranks.with_coordinator,
        workers=ranks.workers.size if ranks.workers else 0,
        published=sorted(published),
        seen=seen,
    )
    job.agreed_exit(world, 0)
