# SPDX-License-Identifier: Apache-2.0
"""Run two replicas of two processes each, and a coordinator. Each replica is a JAX cluster with its own
all-reduce, and both work at the same time. Arguments: folder."""

import os
import sys
import time

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.binding import role_environment
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.launch.ranks import split
from tests.helpers.parallel.rows import proposed, report

STEPS, STOP_AT = 60, 21


def until(done):
    """Test until `done()`; a trainer would take steps meanwhile."""
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit, "too slow"
        time.sleep(0.001)


with job.job() as world:
    ranks = split(world, trainers_per_node=4, trainers_per_replica=2)
    values: dict[str, object] = {
        "role": ranks.role,
        "replica": ranks.replica,
        "replica_rank": ranks.replica_rank,
    }
    offers = [()] * ranks.node_trainers or [()]
    os.environ.update(role_environment(ranks.role, max(ranks.node_rank, 0), offers, host_devices=4))
    if ranks.team is not None:
        import jax
        import numpy as np

        from aiperf_mpi.parallel.replica import cluster
        from aiperf_mpi.parallel.replica.agreements import Agreements
        from aiperf_mpi.parallel.replica.team import Team
        from aiperf_mpi.training.lockstep import BROKEN, GO, STOP, FailedElsewhere
        from aiperf_mpi.training.steps.devices import AXIS, device_sharding, place
        from aiperf_mpi.training.steps.dispatch import PMAP, SHARD_MAP, lower

        cluster.join(ranks.team)
        team, devices = Team(ranks.team), jax.devices()
        wait(ranks.workers.Ibarrier())

        # The first trainer posts a record, the other one posts later; meanwhile they agree on steps.
        agreements, record = Agreements(ranks.team), proposed(ranks.replica, 7)
        first = agreements.post(GO, record) if team.leads else None
        assert team.agree(GO) == GO
        first = first or agreements.post(GO)
        until(first.done)
        received, second = first.record, agreements.post(GO if team.leads else BROKEN)
        until(second.done)
        values["record"] = [int(received["replica"]), int(received["round"])]
        values["values"] = [first.value, second.value]

        # A trainer with an error gives its cause. In the end only the first trainer has posted two
        # agreements.
        under_way = [agreements.post(GO) for _ in range(2)] if team.leads else []
        agreements.settle(team)
        values["settled"] = [agreements._posted, all(other.done() for other in under_way)]
        values["cause"] = team.cause(OSError("disk") if team.rank == 1 else FailedElsewhere("another"))

        # Steps of either form on whole arrays; process 1 of replica 1 wants to stop, and its whole replica
        # stops.
        def step(total, mine):
            summed = jax.lax.psum(mine, AXIS)
            return total + summed, summed

        shape = jax.ShapeDtypeStruct((2, 3), np.float32)
        axes = {"in_axes": (0, 0), "out_axes": (0, None), "donate": (0,)}
        lowered = {
            form: lower(step, devices, (shape, shape), form=form, **axes) for form in (SHARD_MAP, PMAP)
        }
        programs = {form: program.compile() for form, program in lowered.items()}
        sharding = device_sharding(devices)
        own = place(np.full((1, 3), world.rank, np.float32), sharding)
        begin = time.time()
        for form, program in programs.items():
            total, steps = place(np.zeros((1, 3), np.float32), sharding), 0
            while steps < STEPS:
                wants = (ranks.replica, team.rank, steps) == (1, 1, STOP_AT)
                if team.agree(STOP if wants else GO) == STOP:
                    break
                total, summed = program(total, own)
                steps += 1
            values[form] = [steps, *np.asarray(total.addressable_data(0))[0].tolist(), float(summed[0])]
        values |= {
            "begin": begin,
            "end_time": time.time(),
            "devices": [len(devices), jax.local_device_count()],
        }
        cluster.leave()
    report(sys.argv[1], world.rank, **values)
    job.agreed_exit(world, 0)
