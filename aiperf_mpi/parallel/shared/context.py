# SPDX-License-Identifier: Apache-2.0
"""The context of a role: configuration, ranks, clock, timer, windows, queues and messages."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.config import Config
from aiperf_mpi.parallel.launch.collective import LOOK_SECONDS, start_agreement
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.launch.ranks import Ranks, check_shared_memory
from aiperf_mpi.parallel.shared.claims import WindowClaims
from aiperf_mpi.parallel.shared.clock import CoreClock, core_start, measure_offset
from aiperf_mpi.parallel.shared.history import WindowHistory
from aiperf_mpi.parallel.shared.messages import Messages, Reason
from aiperf_mpi.parallel.shared.queue import CandidateQueue, open_queues
from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.planning.shared_memory import coordinator_bytes, node_bytes
from aiperf_mpi.results.file.restored import NEW, Restored
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.footprint import CLAIMS_PER_RECORD


@dataclass(frozen=True)
class Windows:
    """History, claims, queues and messages, as this rank reaches them; made and closed by all ranks together.

    `queues` are those of the queue group's replicas, in the order of `Ranks.queue_group_replicas`; rank 0 has
    none.
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
    """Everything that a role's functions take, on one rank.

    Attributes:
        started: this rank's `time.monotonic()` when the process began.
        n_devices: devices of each replica.
        resumed: what the run has taken over from segments before this one.
    """

    config: Config
    ranks: Ranks
    windows: Windows
    timer: PhaseTimer
    started: float
    clock: CoreClock
    n_devices: int
    resumed: Restored = NEW

    @property
    def limit(self) -> float:
        """The time limit, in core seconds: what ends later does not count."""
        return self.config.run.time_limit

    def now(self) -> float:
        """Return the core seconds on rank 0's clock; after the limit return the limit."""
        return min(self.clock.now(), self.limit)

    def over(self) -> bool:
        """Return whether this rank must end its work: rank 0 sent a stop message, or the time is over."""
        return self.windows.messages.stop_requested() is not None or self.clock.now() >= self.limit

    def may_be_unchecked(self, candidate: Candidate) -> bool:
        """Return whether no generator may have checked a candidate: the initial architecture, and those of
        segments before this one."""
        return candidate.parent_id < 0 or candidate.trial_id < self.resumed.slots

    def pause(self, seconds: float, phase: str = "idle") -> None:
        """Sleep, and book the time to a phase; at most for as long as a rank may stay away from MPI."""
        with self.timer(phase):
            time.sleep(min(seconds, self.config.parallel.poll_seconds))

    def wait_for_ranks(self, request: MPI.Request) -> bool:
        """Wait at the run's end for a collective operation of many ranks; return whether all have come.

        It is False where ranks are missing, and rank 0 does not wait for them any more.
        """
        while not request.Test():
            stop = self.windows.messages.stop_requested()
            if stop is not None and stop.reason is Reason.ALONE:
                return False
            time.sleep(LOOK_SECONDS)
        return True


def open_windows(config: Config, ranks: Ranks, resumed: Restored = NEW) -> Windows:
    """Make the windows, queues and messages of a run; the queues begin with its next rounds. Collective.

    Raises LaunchError where a host's shared memory is too small.
    """
    capacity = config.parallel.history_capacity
    depth, queues, queue_group = config.search.queue_depth, len(ranks.queue_group_replicas), ranks.queue_group
    check_shared_memory(
        ranks,
        coordinator_bytes(config),
        node_bytes(config, queues, 1 if queue_group is None else queue_group.size),
    )
    return Windows(
        history=WindowHistory(ranks.world, ranks.node if ranks.shared else None, capacity),
        claims=WindowClaims(ranks.world, CLAIMS_PER_RECORD * capacity),
        queues=()
        if queue_group is None
        else open_queues(
            queue_group,
            queues,
            depth,
            shared=ranks.queue_group_shared,
            first_ticket=[resumed.tickets.get(replica, 1) for replica in ranks.queue_group_replicas],
        ),
        messages=Messages(ranks.world),
    )


def start_core_clock(ranks: Ranks, begun: float = 0.0) -> CoreClock:
    """Start the core time now, on rank 0's clock, at core second `begun`. Collective."""
    return core_start(ranks.world, measure_offset(ranks.world), begun=begun)


def owns_best(context: Context, error: float = math.inf, trial_id: int = -1) -> bool:
    """Return whether this rank's model has the lowest error of the machine; of equals the earlier trial.

    Collective over all ranks but 0, which serves messages meanwhile. Ranks without a model keep the defaults.
    Where ranks are missing, no model is known to be the best, and the result is False on all of them.
    """
    workers = context.ranks.workers
    if workers is None:
        raise RuntimeError("rank 0 has no model, so it cannot own the best one")
    lowest = start_agreement(workers, np.array([error]), MPI.MIN)
    if not context.wait_for_ranks(lowest.request):
        return False
    mine = trial_id if error == lowest.agreed[0] and trial_id >= 0 else np.iinfo(np.int64).max
    first = start_agreement(workers, np.array([mine], np.int64), MPI.MIN)
    return context.wait_for_ranks(first.request) and trial_id >= 0 and int(first.agreed[0]) == trial_id
