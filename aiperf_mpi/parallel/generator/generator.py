# SPDX-License-Identifier: Apache-2.0
"""A generator rank: fill the queues of its queue group's replicas until the run ends. It never uses an
accelerator."""

from __future__ import annotations

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.generator.checks import checks_of
from aiperf_mpi.parallel.generator.maker import CandidateMaker
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.trials.candidate import Candidate

#: Seconds between two polls while the maker's thread works, and while there is nothing to do.
WORKING_SECONDS, WAITING_SECONDS = 0.002, 0.05


def generate(context: Context) -> None:
    """Make candidates until rank 0 ends the run, or the time is over."""
    ranks, windows, timer = context.ranks, context.windows, context.timer
    served = tuple(zip(ranks.queue_group_replicas, windows.queues, strict=True))
    maker = CandidateMaker(context, checks_of(context), ranks.queue_group_generator, served)
    while not context.over():
        with timer("communicate"):
            advanced = maker.advance()
        if maker.busy:
            context.pause(WORKING_SECONDS, "search")
        elif not advanced:
            context.pause(WAITING_SECONDS)
    with timer("search"):
        maker.close()


def warm_up(context: Context) -> None:
    """Import the checks' modules and count the initial architecture once, before the core time starts."""
    initial = Architecture(context.config.base)
    counted = Candidate.new(
        initial,
        (),
        parent_id=-1,
        replica=0,
        generator=0,
        round=1,
        seed=context.config.run.seed,
        batch_per_device=context.config.train.batch_per_device,
        devices=context.n_devices,
    )
    checks_of(context)(counted)
