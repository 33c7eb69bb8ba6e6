# SPDX-License-Identifier: Apache-2.0
"""The last row of each rank: its place, time by phase, messages and window traffic."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from aiperf_mpi.machine.affinity import cpus_of_process, numa_nodes, ranges
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.messages import Kind
from aiperf_mpi.phases import PHASES
from aiperf_mpi.probe import NotKnown, probe
from aiperf_mpi.results.file.rows import MESSAGE_KINDS, RANK_ROW, ROW_MESSAGES, new_row
from aiperf_mpi.trials.footprint import queue_bytes


def send_rank_row(context: Context, device: str, uuids: str, bytes_read: int = 0) -> None:
    """Send rank 0 the row of this rank, which is its last message."""
    context.windows.messages.send(Kind.RANK, rank_row(context, device, uuids, bytes_read)[0])


def rank_row(context: Context, device: str, uuids: str, bytes_read: int = 0) -> np.ndarray:
    """Return the row of this rank (RANK_ROW): its place, seconds by phase up to now, messages and traffic.

    `bytes_read` is what it read from the files of the data set until core stop.
    """
    ranks, windows, timer = context.ranks, context.windows, context.timer
    messages, history, claims = windows.messages, windows.history, windows.claims
    cpus = listed(probe("the process's CPUs", cpus_of_process))
    nodes = listed(probe("the NUMA nodes", numa_nodes, cpus))
    seconds, wall = timer.seconds, time.monotonic() - context.started

    # Messages by kind, including this row, then the traffic through windows. Messages for the view alone are
    # not part of a result.
    rows = len(ROW_MESSAGES)
    sent = dict(zip(ROW_MESSAGES, messages.sent[:rows].tolist(), strict=True))
    received = dict(zip(ROW_MESSAGES, messages.received[:rows].tolist(), strict=True))
    counted = (messages.sent_bytes + messages.received_bytes)[:rows]
    moved = dict(zip(ROW_MESSAGES, counted.tolist(), strict=True))
    if ranks.rank:
        sent["rank"], moved["rank"] = sent["rank"] + 1, moved["rank"] + RANK_ROW.itemsize
    sent |= {
        "history": history.appended,
        "claim": claims.claimed + claims.refused,
        "candidate": sum(queue.published for queue in windows.queues),
    }
    received |= {
        "history": history.log.fetched,
        "claim": 0,
        "candidate": sum(queue.taken for queue in windows.queues),
    }
    moved |= {
        "history": history.log.bytes,
        "claim": 8 * claims.probes,
        "candidate": queue_bytes(1, 1) * (sent["candidate"] + received["candidate"]),
    }
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
        numa=ranges(nodes, RANK_ROW["numa"].itemsize) or "not shown by the kernel",
        clock_offset=context.clock.offset.seconds,
        clock_uncertainty=context.clock.offset.uncertainty,
        wall_seconds=wall,
        bytes_read=bytes_read,
        phase_seconds=[seconds[phase] for phase in PHASES],
        messages_sent=[sent[kind] for kind in MESSAGE_KINDS],
        messages_received=[received[kind] for kind in MESSAGE_KINDS],
        message_bytes=[moved[kind] for kind in MESSAGE_KINDS],
    )


def listed(numbers: Iterable[int] | NotKnown) -> tuple[int, ...]:
    """Return what a probe found; nothing if it is not known."""
    return () if isinstance(numbers, NotKnown) else tuple(numbers)
