# SPDX-License-Identifier: Apache-2.0
"""`pack` under a launcher: each rank packs its shards, rank 0 shows the progress and writes the manifest.

A rank has every N-th shard of the plan, so what a shard has does not depend on the ranks. The records of the
shards come to rank 0 by messages: a file server may show new files late.
"""

from __future__ import annotations

import signal
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from typing import NoReturn

from aiperf_mpi.config import ConfigError
from aiperf_mpi.ending import end_job, lines, process, watch, write_error
from aiperf_mpi.packing import job
from aiperf_mpi.packing.folder import Folder, Record
from aiperf_mpi.packing.plan import Plan, versions
from aiperf_mpi.packing.progress import ProgressView
from aiperf_mpi.packing.sources.pictures import Pictures
from aiperf_mpi.packing.work import Packer, Progress
from aiperf_mpi.parallel.launch.collective import LOOK_SECONDS
from aiperf_mpi.parallel.launch.job import agreed_exit
from aiperf_mpi.parallel.launch.job import job as launched
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.launch.start import DATA_SECONDS, DATA_VARIABLE, seconds_of, step, together

#: Tags of messages to rank 0: counts of pictures, and the records of a rank at its end.
_COUNTS, _RECORDS = 1, 2

#: Seconds between two messages of a rank.
_SEND_SECONDS = 0.5


class _Signalled(Exception):
    """A signal has come: the packing ends."""


def pack_job(request: job.Request, finish: Callable[[job.Conclusion], int], words: Sequence[str]) -> NoReturn:
    """Pack as a rank of this job; `finish` prints on rank 0 how it ended, and returns the exit code.

    `words` is the command line, which all ranks have alike.
    """
    with launched(words=words) as world:
        seconds = seconds_of(DATA_VARIABLE, DATA_SECONDS)
        prepared = together("source and folder", lambda: _prepare(request, world.rank), seconds)
        with step("list of pictures"):
            plan, pictures, done = world.bcast(
                None
                if prepared is None
                else (prepared.plan, prepared.source.pictures, prepared.finished is not None)
            )
        together("folder on all hosts", lambda: None if done else _check(Folder(request.folder), plan))
        watch.defer()
        process.step = "packing"
        code = 0
        try:
            records = {} if done else _pack(world, request, plan, pictures)
            if prepared is not None:
                conclusion = job.already(prepared) if done else job.conclude(prepared, records)
                code = finish(conclusion)
                prepared.release()
            _wait_for_all(world)
        except _Signalled:
            number = signal.Signals[watch.signal]
            text = f"{watch.signal}: the packing ends; run the same command again: it goes on"
            end_job(128 + number, text, where="")
        agreed_exit(world, code)


def _prepare(request: job.Request, rank: int) -> job.Prepared | None:
    """Look at the source and take the folder, on rank 0. Raises ConfigError."""
    if rank:
        return None
    prepared = job.prepare(request, lambda line: write_error(lines(line)))
    process.cleanups.append(prepared.release)
    return prepared


def _check(folder: Folder, plan: Plan) -> None:
    """Raise ConfigError if this host has other libraries than rank 0, or does not see its folder."""
    here = versions()
    for name in sorted(set(here) | set(plan.versions)):
        ours, theirs = here.get(name, "none"), plan.versions.get(name, "none")
        if ours != theirs:
            raise ConfigError(
                f"{name} is {ours} here, but {theirs} on rank 0: start all ranks with the same environment"
            )
    folder.is_shared(plan)


def _pack(
    world: MPI.Intracomm, request: job.Request, plan: Plan, pictures: dict[str, Pictures]
) -> dict[str, Record]:
    """Pack this rank's shards; return the records of all on rank 0, and none on the others. Collective."""
    tasks = plan.tasks()[world.rank :: world.size]
    others = _Others(world) if world.rank == 0 else _Reporter(world)
    view = None
    if world.rank == 0:
        view = ProgressView(sys.stderr, "packing", "pictures", sum(plan.pictures.values()))

    def tick(progress: Progress) -> None:
        if watch.signal:
            raise _Signalled
        total = others.exchange(progress)
        if view is not None:
            view.update(total.done, total.kept, total.more)

    packer = Packer(pictures, Folder(request.folder), plan.layout, request.workers, tick)
    records = packer.pack_all(tasks)
    while not others.end(records):
        tick(packer.progress)
        time.sleep(LOOK_SECONDS)
    return others.records


def _wait_for_all(world: MPI.Intracomm) -> None:
    """Wait until all ranks are here, as rank 0 is after it has written the manifest. Raises _Signalled."""
    ended = world.Ibarrier()
    while not ended.Test():
        if watch.signal:
            raise _Signalled
        time.sleep(LOOK_SECONDS)


class _Others:
    """What rank 0 knows of the other ranks: the counts of each, and its records once it has ended."""

    def __init__(self, world: MPI.Intracomm) -> None:
        self._world, self._counts = world, dict[int, list[int]]()
        self._ended: set[int] = set()
        self.records: dict[str, Record] = {}

    def exchange(self, mine: Progress) -> Progress:
        """Take what has come; return the progress of all ranks together."""
        status = MPI.Status()
        while self._world.Iprobe(MPI.ANY_SOURCE, _COUNTS, status):
            counts = array("q", [0, 0, 0, 0])
            self._world.Recv([counts, 4, MPI.INT64_T], status.Get_source(), _COUNTS)
            self._counts[status.Get_source()] = counts.tolist()
        while self._world.Iprobe(MPI.ANY_SOURCE, _RECORDS, status):
            self.records |= self._world.recv(source=status.Get_source(), tag=_RECORDS)
            self._ended.add(status.Get_source())
        own = [mine.pictures, mine.done, mine.kept, mine.rejected]
        return Progress(*(sum(column) for column in zip(own, *self._counts.values(), strict=True)))

    def end(self, records: dict[str, Record]) -> bool:
        """Add the records of rank 0; return whether those of all ranks are there."""
        self.records |= records
        return len(self._ended) == self._world.size - 1


class _Reporter:
    """Sends the counts of this rank to rank 0 now and then, and its records at its end."""

    def __init__(self, world: MPI.Intracomm) -> None:
        self._world, self._sent = world, 0.0
        self._counts = array("q", [0, 0, 0, 0])
        self._request: MPI.Request | None = None
        self._last: MPI.Request | None = None
        self.records: dict[str, Record] = {}

    def exchange(self, mine: Progress) -> Progress:
        """Send the counts, unless some were sent a moment ago; return them."""
        free = self._request is None or self._request.Test()
        if free and time.monotonic() - self._sent >= _SEND_SECONDS:
            self._sent = time.monotonic()
            self._counts[:] = array("q", [mine.pictures, mine.done, mine.kept, mine.rejected])
            self._request = self._world.Isend([self._counts, 4, MPI.INT64_T], 0, _COUNTS)
        return mine

    def end(self, records: dict[str, Record]) -> bool:
        """Send the records; return whether rank 0 has them, and all counts."""
        self._last = self._last or self._world.isend(records, 0, _RECORDS)
        return self._last.Test() and (self._request is None or self._request.Test())
