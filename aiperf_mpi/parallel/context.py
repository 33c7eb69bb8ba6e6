# SPDX-License-Identifier: Apache-2.0
"""What a role works with: configuration, place, clock, timer, and this rank's ends of windows, queues and messages."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from aiperf_mpi.config import Config
from aiperf_mpi.parallel.candidates import CandidateQueue, open_queues
from aiperf_mpi.parallel.claims import WindowClaims
from aiperf_mpi.parallel.clock import CoreClock, core_start, measure_offset
from aiperf_mpi.parallel.comm import Ranks, check_shared_memory, wait
from aiperf_mpi.parallel.history import WindowHistory
from aiperf_mpi.parallel.messages import Kind, Messages
from aiperf_mpi.results.rows import MESSAGE_KINDS, RANK_ROW, ROW_MESSAGES, new_row
from aiperf_mpi.search.footprint import CLAIMS_PER_RECORD, claims_bytes, history_bytes, mirror_bytes, queue_bytes
from aiperf_mpi.system.affinity import cpus_of_process, numa_nodes, ranges
from aiperf_mpi.system.phases import PHASES, PhaseTimer


@dataclass(frozen=True)
class Windows:
    """This rank's ends of everything that ranks share; made and closed by all ranks together.

    `queues` are those of the crew's replicas, in the order of `Ranks.crew_replicas`; none on rank 0.
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
        """Core seconds, on rank 0's clock, never beyond the limit: what is stamped later happened at the limit."""
        return min(self.clock.now(), self.limit)

    def over(self) -> bool:
        """Whether this rank is to end its work: rank 0 said so, or the time is over."""
        return self.windows.messages.stop_requested() is not None or self.clock.now() >= self.limit

    def pause(self, seconds: float, phase: str = "idle") -> None:
        """Sleep in a phase, at most as long as a rank may stay away from MPI."""
        with self.timer(phase):
            time.sleep(min(seconds, self.config.parallel.poll_seconds))


def open_windows(config: Config, ranks: Ranks) -> Windows:
    """The windows, queues and messages of a run. Collective; raises LaunchError where a host's memory is too small."""
    capacity = config.parallel.history_capacity
    depth, queues, crew = config.search.queue_depth, len(ranks.crew_replicas), ranks.crew
    check_shared_memory(
        ranks,
        coordinator_bytes=history_bytes(capacity) + claims_bytes(CLAIMS_PER_RECORD * capacity),
        node_bytes=mirror_bytes(capacity) + queues * queue_bytes(depth, 1 if crew is None else crew.size),
    )
    return Windows(
        history=WindowHistory(ranks.world, ranks.node if ranks.shared else None, capacity),
        claims=WindowClaims(ranks.world, CLAIMS_PER_RECORD * capacity),
        queues=() if crew is None else open_queues(crew, queues, depth, shared=ranks.crew_shared),
        messages=Messages(ranks.world),
    )


def start_core_clock(ranks: Ranks) -> CoreClock:
    """The clock of the core time, which starts now, on rank 0's clock. Collective."""
    return core_start(ranks.world, measure_offset(ranks.world))


def owns_best(ranks: Ranks, error: float = math.inf, trial_id: int = -1) -> bool:
    """Whether this rank's model has the lowest error of the machine, the earlier trial of equals.

    Collective over the ranks but 0, which serves messages meanwhile; ranks without a model leave the defaults.
    """
    if ranks.workers is None:
        raise RuntimeError("the best model is owned by a trainer, never by rank 0")
    lowest, first = np.empty(1), np.empty(1, np.int64)
    wait(ranks.workers.Iallreduce([np.array([error]), 1, MPI.DOUBLE], [lowest, 1, MPI.DOUBLE], MPI.MIN))
    mine = np.array([trial_id if error == lowest[0] and trial_id >= 0 else np.iinfo(np.int64).max])
    wait(ranks.workers.Iallreduce([mine, 1, MPI.INT64_T], [first, 1, MPI.INT64_T], MPI.MIN))
    return trial_id >= 0 and int(first[0]) == trial_id


def send_rank_row(context: Context, device: str, uuids: str) -> None:
    """Tell rank 0 how this rank spent its time and what it sent; the last message of a rank."""
    context.windows.messages.send(Kind.RANK, rank_row(context, device, uuids)[0])


def rank_row(context: Context, device: str, uuids: str) -> np.ndarray:
    """The row of this rank (RANK_ROW): its place, its seconds by phase up to now, its messages and window traffic."""
    ranks, windows, timer = context.ranks, context.windows, context.timer
    messages, history, claims = windows.messages, windows.history, windows.claims
    cpus = cpus_of_process()
    seconds, wall = timer.seconds, time.monotonic() - context.started

    # Messages first, by kind, this row itself among them; then what went through windows instead.
    sent = dict(zip(ROW_MESSAGES, messages.sent.tolist(), strict=True))
    received = dict(zip(ROW_MESSAGES, messages.received.tolist(), strict=True))
    moved = dict(zip(ROW_MESSAGES, (messages.sent_bytes + messages.received_bytes).tolist(), strict=True))
    if ranks.rank:
        sent["rank"], moved["rank"] = sent["rank"] + 1, moved["rank"] + RANK_ROW.itemsize
    sent |= {"history": history.appended, "claim": claims.claimed + claims.refused,
             "candidate": sum(queue.published for queue in windows.queues)}  # fmt: skip
    received |= {"history": history.fetched, "claim": 0, "candidate": sum(queue.taken for queue in windows.queues)}
    moved |= {"history": history.bytes, "claim": 8 * claims.probes,
              "candidate": queue_bytes(1, 1) * (sent["candidate"] + received["candidate"])}  # fmt: skip
    return new_row(
        RANK_ROW,
        rank=ranks.rank,
        node=ranks.node_index,
        replica=ranks.replica,
        local_rank=ranks.node_rank,
        role=ranks.role,
        hostname=ranks.host,
        device=device,
        device_uuid=uuids,
        cpus=ranges(cpus, RANK_ROW["cpus"].itemsize) or "not told by the system",
        numa=ranges(numa_nodes(cpus), RANK_ROW["numa"].itemsize) or "not shown by the kernel",
        clock_offset=context.clock.offset.seconds,
        clock_uncertainty=context.clock.offset.uncertainty,
        wall_seconds=wall,
        phase_seconds=[seconds[phase] for phase in PHASES],
        messages_sent=[sent[kind] for kind in MESSAGE_KINDS],
        messages_received=[received[kind] for kind in MESSAGE_KINDS],
        message_bytes=[moved[kind] for kind in MESSAGE_KINDS],
    )
