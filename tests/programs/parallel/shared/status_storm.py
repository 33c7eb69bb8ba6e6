# SPDX-License-Identifier: Apache-2.0
"""Send the statuses of many replicas to rank 0, in between rows; report the CPU time of each. Arguments:
folder, replicas, rounds."""

import sys
import time

from aiperf_mpi.parallel.coordinator.progress import TRAINING, Progress
from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.shared.messages import Kind, Messages
from aiperf_mpi.parallel.shared.status import ReplicaStatus, packed, unpacked
from tests.helpers.parallel.rows import report

folder, replicas, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
values = {}
with job.job() as world:
    ends = Messages(world)
    if world.rank:
        # Each rank speaks for its share of the replicas, as fast as it can.
        mine, costs = range(world.rank - 1, replicas, world.size - 1), []
        for number in range(rounds):
            for replica in mine:
                status = ReplicaStatus(replica, replica, "train", number, rounds, 7 * number, t=float(number))
                while True:
                    start = time.thread_time()
                    sent = ends.offer(Kind.STATUS, packed(status))
                    if sent:
                        costs.append(time.thread_time() - start)
                        break
                    time.sleep(0.001)
            ends.send(Kind.SAMPLE, bytes(8))
        ends.send(Kind.RANK, bytes(8))
        values["microseconds"] = 1e6 * sorted(costs)[len(costs) // 2]
        values["sent"] = int(ends.sent[Kind.STATUS])
    else:
        progress, last, received, taken = Progress(replicas), 0, 0, 0.0
        while last < world.size - 1:
            start = time.thread_time()
            messages = ends.poll()
            for message in messages:
                if message.kind is Kind.STATUS:
                    progress.status(unpacked(message.data))
                    received += 1
            taken += time.thread_time() - start if messages else 0.0
            last += sum(message.kind is Kind.RANK for message in messages)
            time.sleep(0.001)
        start = time.thread_time()
        shown = progress.snapshot(1.0, 60.0, TRAINING)
        values |= {
            "received": received,
            "microseconds": 1e6 * taken / received,
            "snapshot_microseconds": 1e6 * (time.thread_time() - start),
            "last": sorted({status.epoch for status in progress.statuses.values()}),
            "replicas": len(progress.statuses),
            "phases": dict(shown.phases),
        }
    ends.close()
    report(folder, world.rank, **values)
    job.agreed_exit(world, 0)
