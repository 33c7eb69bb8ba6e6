# SPDX-License-Identifier: Apache-2.0
"""What a role works with: configuration, place, clock, timer, and this rank's ends of windows, queues and
messages."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from aiperf_mpi.config import Config
from aiperf_mpi.parallel.launch.collective import agree
from aiperf_mpi.parallel.launch.ranks import Ranks, check_shared_memory
from aiperf_mpi.parallel.shared.claims import WindowClaims
from aiperf_mpi.parallel.shared.clock import CoreClock, core_start, measure_offset
from aiperf_mpi.parallel.shared.history import WindowHistory
from aiperf_mpi.parallel.shared.messages import Messages
from aiperf_mpi.parallel.shared.queue import CandidateQueue, open_queues
from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.trials.footprint import (
    CLAIMS_PER_RECORD,
    claims_bytes,
    history_bytes,
    mirror_bytes,
    queue_bytes,
)


@dataclass(frozen=True)
class Windows:
    """This rank's ends of everything that ranks share; made and closed by all ranks together.

    `queues` are those of the queue group's replicas, in the order of `Ranks.queue_group_replicas`; none on
    rank 0.
    """

    history: WindowHistory
    claims: WindowClaims
    queues: tuple[CandidateQueue, ...]
    messages: Messages

    def close(self) -> None:
        """Wait until all messages have left, and free the windows. Collective."""
        self.messages.close()
        for queue in self.queues:
            queue.close()
        self.claims.close()
        self.history.close()


@dataclass(frozen=True)
class Context:
    """Everything that a role's functions take, on one rank. `n_devices` are the devices of each replica."""

    config: Config
    ranks: Ranks
    windows: Windows
    timer: PhaseTimer
    started: float
    clock: CoreClock
    n_devices: int

    @property
    def limit(self) -> float:
        """Core seconds after which nothing counts."""
        return self.config.run.time_limit

    def now(self) -> float:
        """Core seconds, on rank 0's clock, never beyond the limit: what is stamped later happened at the
        limit."""
        return min(self.clock.now(), self.limit)

    def over(self) -> bool:
        """Whether this rank is to end its work: rank 0 said so, or the time is over."""
        return self.windows.messages.stop_requested() is not None or self.clock.now() >= self.limit

    def pause(self, seconds: float, phase: str = "idle") -> None:
        """Sleep in a phase, at most as long as a rank may stay away from MPI."""
        with self.timer(phase):
            time.sleep(min(seconds, self.config.parallel.poll_seconds))


def open_windows(config: Config, ranks: Ranks) -> Windows:
    """The windows, queues and messages of a run. Collective; raises LaunchError where a host's memory is too
    small."""
    capacity = config.parallel.history_capacity
    depth, queues, queue_group = config.search.queue_depth, len(ranks.queue_group_replicas), ranks.queue_group
    check_shared_memory(
        ranks,
        coordinator_bytes=history_bytes(capacity) + claims_bytes(CLAIMS_PER_RECORD * capacity),
        node_bytes=mirror_bytes(capacity)
        + queues * queue_bytes(depth, 1 if queue_group is None else queue_group.size),
    )
    return Windows(
        history=WindowHistory(ranks.world, ranks.node if ranks.shared else None, capacity),
        claims=WindowClaims(ranks.world, CLAIMS_PER_RECORD * capacity),
        queues=()
        if queue_group is None
        else open_queues(queue_group, queues, depth, shared=ranks.queue_group_shared),
        messages=Messages(ranks.world),
    )


def start_core_clock(ranks: Ranks) -> CoreClock:
    """The clock of the core time, which starts now, on rank 0's clock. Collective."""
    return core_start(ranks.world, measure_offset(ranks.world))


def owns_best(ranks: Ranks, error: float = math.inf, trial_id: int = -1) -> bool:
    """Whether this rank's model has the lowest error of the machine, the earlier trial of equals.

    Collective over the ranks but 0, which serves messages meanwhile; ranks without a model leave the
    defaults.
    """
    if ranks.workers is None:
        raise RuntimeError("the best model is owned by a trainer, never by rank 0")
    lowest = agree(ranks.workers, np.array([error]), MPI.MIN)[0]
    mine = trial_id if error == lowest and trial_id >= 0 else np.iinfo(np.int64).max
    first = agree(ranks.workers, np.array([mine], np.int64), MPI.MIN)[0]
    return trial_id >= 0 and int(first) == trial_id
