# SPDX-License-Identifier: Apache-2.0
"""Copy the packed pictures to each node before the core time, or check their hashes where they are.

The first trainer of each node works for it, by the threads of :mod:`aiperf_mpi.data.staging`. Its main thread
sends its counts to rank 0, which shows how far all nodes are. The length of the step is not bounded, but a
time without any progress is.
"""

from __future__ import annotations

import os
import sys
import time
from array import array
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aiperf_mpi.config import Config
from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.data.staging import Staging, Stopped, Work, check_room, plan
from aiperf_mpi.ending import describe, end_job, process
from aiperf_mpi.exits import EXIT_FAILURE
from aiperf_mpi.packing.progress import ProgressView
from aiperf_mpi.parallel.coordinator.view import resolve_mode
from aiperf_mpi.parallel.launch.collective import agree, wait
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.launch.placement import TRAINER
from aiperf_mpi.parallel.launch.ranks import Ranks
from aiperf_mpi.parallel.launch.start import (
    DATA_SECONDS,
    DATA_VARIABLE,
    Outcome,
    exchange,
    names_of,
    seconds_of,
    together,
)
from aiperf_mpi.printable import counted

#: Tags of the counts that go to rank 0, and of its word that all have ended or one has failed.
_COUNTS, _WORD = 1, 2

#: States of a rank in its counts.
_AT_WORK, _FINISHED, _FAILED = range(3)

#: Seconds between two messages of a rank, between two looks, and in which all stop after one has failed.
_SEND_SECONDS, _LOOK_SECONDS, _STOP_SECONDS = 0.5, 0.01, 1.5

#: Names of the two steps, as they are shown.
STAGING, HASHES = "staging", "hashes of the pictures"


@dataclass(frozen=True, slots=True)
class Staged:
    """The pictures of a node after the staging or the check.

    Attributes:
        folder: copy on this rank's node; None where the pictures are read from `data.path`.
        seconds: of the copying, on the node that took longest; 0 without a copy.
        bytes: that were written, over all nodes.
        hash_seconds: of the check of hashes without a copy, on the node that took longest.
    """

    folder: Path | None = None
    seconds: float = 0.0
    bytes: int = 0
    hash_seconds: float = 0.0

    def node_config(self, config: Config) -> Config:
        """Return the configuration with the folder that this node reads; the result stores the other one."""
        if self.folder is None:
            return config
        return replace(config, data=replace(config.data, path=str(self.folder)))


#: Pictures that are read where `data.path` says, unchecked.
NOT_STAGED = Staged()


def stage_pictures(config: Config, ranks: Ranks) -> Staged:
    """Copy the packed pictures to `data.stage` on each node, or check their hashes where they are.

    Collective. Raises AgreedError on all ranks, with rank and host, for a node that cannot make its copy, and
    for a shard that cannot be read or has another content than the manifest says.
    """
    data = config.data
    if not DATASETS[data.name].packed or not (data.stage or data.check_hashes):
        return NOT_STAGED
    step = STAGING if data.stage else HASHES
    trains, works = ranks.role == TRAINER, ranks.rank in stagers(ranks)
    planned = together(f"plan: {step}", lambda: _prepare(config, ranks, works) if trains else None)

    begun, outcome, copied = time.monotonic(), Outcome(), 0
    process.step = step
    if ranks.rank == 0:
        _Nodes(ranks, step, resolve_mode(config.run.view, sys.stderr) == "live").wait()
    elif planned is not None and works:
        work = Work(planned, data.threads(len(os.sched_getaffinity(0))))
        outcome = _do(ranks, work)
        copied = work.copied
    seconds = time.monotonic() - begun if works else 0.0

    # Rank 0 alone bounds the wait, by the time without progress.
    exchange(step, outcome, _patience() if ranks.rank == 0 else float("inf"))
    longest = float(agree(ranks.world, np.array([seconds]))[0])
    written = int(agree(ranks.world, np.array([copied]), MPI.SUM)[0])
    if not data.stage:
        return Staged(hash_seconds=longest)
    return Staged(None if planned is None else planned.target, longest, written)


def stagers(ranks: Ranks) -> list[int]:
    """Return the first trainer of each node, which works for it, in the order of the nodes."""
    first: dict[int, int] = {}
    for place in ranks.places:
        if place.role == TRAINER:
            first.setdefault(place.node, place.rank)
    return [first[node] for node in sorted(first)]


def _prepare(config: Config, ranks: Ranks, works: bool) -> Staging:
    """Return the plan of this node; look at the room for it if this rank `works`. Raises ConfigError."""
    planned = plan(config, ranks.node_index, ranks.n_nodes)
    if works:
        check_room(planned)
    return planned


def _patience() -> float:
    """Return the seconds without progress after which the job ends."""
    return seconds_of(DATA_VARIABLE, DATA_SECONDS)


# -- the first trainer of a node -------------------------------------------------------------------


def _do(ranks: Ranks, work: Work) -> Outcome:
    """Wait for the threads of this rank, and send their counts to rank 0; return how they ended.

    They are stopped where another rank has failed, and at the end of the process.
    """
    process.cleanups.append(work.stop)
    # MPI works with this memory until each request is complete, and mpi4py keeps none of it.
    nothing, counts = bytearray(), array("q", [0] * 3)
    word = ranks.world.Irecv([nothing, 0, MPI.BYTE], 0, _WORD)
    request: MPI.Request | None = None
    sent = float("-inf")
    while not work.ended():
        now = time.monotonic()
        if now - sent >= _SEND_SECONDS and (request is None or request.Test()):
            sent, request = now, _send(ranks, work, _AT_WORK, counts)
        if word.Test():
            work.stop()
        time.sleep(_LOOK_SECONDS)
    outcome = Outcome()
    try:
        work.conclude()
    except Stopped:
        # The rank that has failed says why.
        outcome = Outcome()
    except Exception as error:
        outcome = Outcome(*describe(error))
    if request is not None:
        wait(request)
    wait(_send(ranks, work, _FAILED if outcome.code else _FINISHED, counts))
    # No message may be under way at the end of a job: MPI's end would wait for its receiver.
    wait(word)
    with suppress(ValueError):
        process.cleanups.remove(work.stop)
    return outcome


def _send(ranks: Ranks, work: Work, state: int, counts: array[int]) -> MPI.Request:
    """Begin to send the counts of this rank to rank 0, from `counts`."""
    counts[:] = array("q", [work.done, work.staging.total, state])
    return ranks.world.Isend([counts, 3, MPI.INT64_T], 0, _COUNTS)


# -- rank 0 ----------------------------------------------------------------------------------------


class _Nodes:
    """What rank 0 knows of the first trainers of all nodes: their bytes, and which have ended.

    Arguments:
        ranks: of the job.
        step: what they do, STAGING or HASHES.
        bar: whether a bar is shown, or plain lines.
    """

    def __init__(self, ranks: Ranks, step: str, bar: bool) -> None:
        self._ranks, self._step, self._bar = ranks, step, bar
        self._counts = dict[int, tuple[int, int, int]]()
        self._stagers = stagers(ranks)
        self._view: ProgressView | None = None

    def wait(self) -> None:
        """Wait until all have ended, which is soon after one has failed; each gets a word of that.

        End the job where none makes progress.
        """
        begun = moved = time.monotonic()
        patience, words, last = _patience(), list[MPI.Request](), float("inf")
        try:
            while self._at_work():
                if self._take():
                    moved = time.monotonic()
                    self._show()
                if self._failed() and not words:
                    words, last = self._send_words(), time.monotonic() + _STOP_SECONDS
                if time.monotonic() > last:
                    return  # the error is exchanged next, and ends the ranks that are late
                if (idle := time.monotonic() - moved) > patience:
                    self._give_up(idle)
                time.sleep(_LOOK_SECONDS)
            for word in words or self._send_words():
                wait(word)
            if self._view is not None and not self._failed():
                self._view.say(self._summary(time.monotonic() - begun))
        finally:
            if self._view is not None:
                self._view.close()
                with suppress(ValueError):
                    process.cleanups.remove(self._view.close)

    def _send_words(self) -> list[MPI.Request]:
        """Begin to send a word to each."""
        return [self._ranks.world.Isend([b"", 0, MPI.BYTE], rank, _WORD) for rank in self._stagers]

    def _take(self) -> bool:
        """Take the counts that have come; return whether any has changed."""
        before, status = dict(self._counts), MPI.Status()
        while self._ranks.world.Iprobe(MPI.ANY_SOURCE, _COUNTS, status):
            counts = array("q", [0, 0, 0])
            self._ranks.world.Recv([counts, 3, MPI.INT64_T], status.Get_source(), _COUNTS)
            self._counts[status.Get_source()] = (counts[0], counts[1], counts[2])
        return self._counts != before

    def _at_work(self) -> list[int]:
        """Return the ranks that have not ended."""
        idle = (0, 0, _AT_WORK)
        return [rank for rank in self._stagers if self._counts.get(rank, idle)[2] == _AT_WORK]

    def _failed(self) -> bool:
        return any(state == _FAILED for _, _, state in self._counts.values())

    def _show(self) -> None:
        """Show the bytes of all nodes, once each has said how many it has."""
        if len(self._counts) < len(self._stagers):
            return
        done, total, _ = (sum(column) for column in zip(*self._counts.values(), strict=True))
        if self._view is None:
            unit, scale = _unit(total)
            self._view = ProgressView(sys.stderr, self._step, unit, total, scale, bar=self._bar)
            # A bar hides the cursor of the terminal.
            process.cleanups.append(self._view.close)
        self._view.update(done)

    def _summary(self, seconds: float) -> str:
        total = sum(total for _, total, _ in self._counts.values())
        where = counted(len(self._stagers), "node")
        unit, scale = _unit(total)
        return f"{self._step}: {total / scale:,.2f} {unit} on {where} in {seconds:.1f} s"

    def _give_up(self, idle: float) -> None:
        """End the job, and name the ranks that it waits for."""
        hosts = {place.rank: place.host for place in self._ranks.places}
        end_job(
            EXIT_FAILURE,
            f"the step {self._step!r} has made no progress for {idle:.0f} s on "
            f"{names_of(self._at_work(), hosts)}; look at its file systems, and whether another run that "
            f"copies to the same folder is stopped; {DATA_VARIABLE} sets the seconds",
        )


def _unit(total: int) -> tuple[str, float]:
    """Return the unit in which so many bytes are shown, and its size."""
    return ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
