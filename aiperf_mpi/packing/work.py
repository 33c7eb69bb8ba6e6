# SPDX-License-Identifier: Apache-2.0
"""Pack shards: threads read and decode the pictures, one writes them in order.

Threads, not processes: the decoders release Python's lock, and a fork after MPI's initialisation is unsafe.
The order of the pictures in a shard is that of the plan, whatever the threads do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import because, message
from aiperf_mpi.data.manifest import Rejected
from aiperf_mpi.files import FileError
from aiperf_mpi.packing.folder import Folder, Record, writing
from aiperf_mpi.packing.picture import Packed, PictureError, pack
from aiperf_mpi.packing.plan import Task
from aiperf_mpi.packing.shard import Layout, ShardWriter
from aiperf_mpi.packing.sources.form import SETTING as SOURCE_SETTING
from aiperf_mpi.packing.sources.pictures import Picture, Pictures, SourceError
from aiperf_mpi.printable import plain

T = TypeVar("T")

#: Most pictures that a thread takes at a time, and most bytes of them if that is fewer; and how many such
#: parts for each thread wait to be decoded or written: with 16 threads and 256 pixels 75 MB.
_PART, _PART_BYTES, _WAITING = 8, 2 << 20, 3

#: Shards that may be synced, hashed and renamed while the next one is written.
_ENDING = 2

#: Seconds between two calls of `tick`.
TICK_SECONDS = 0.1

_AGAIN = "check the source, and run the same command again: it goes on"


@dataclass(slots=True)
class Progress:
    """The pictures that one process has to pack.

    Attributes:
        pictures, done: all of them, and those that are packed or rejected.
        kept: those of `done` that an earlier packing has packed.
        rejected: those that are rejected.
    """

    pictures: int = 0
    done: int = 0
    kept: int = 0
    rejected: int = 0

    @property
    def more(self) -> str:
        """How many are rejected, in words, or ""."""
        return f"{self.rejected} rejected" if self.rejected else ""


#: Is called every TICK_SECONDS; it may raise.
Tick = Callable[[Progress], None]


@dataclass(slots=True, eq=False)
class _Shard:
    """A shard that is being written, and the sums over its pictures.

    Threads remove their shards from one list at the same time. A comparison of contents would run Python code
    there, during which another thread may shift the list.
    """

    task: Task
    writer: ShardWriter
    left: int
    rejected: list[Rejected] = field(default_factory=list)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros((3, 256), np.int64))


@dataclass(frozen=True, slots=True)
class _Part:
    """Some pictures of one shard, one after the other."""

    task: Task
    positions: tuple[int, ...]


#: What became of one picture: its content, or the reason of its rejection.
_Outcome = tuple[Picture, Packed | str]


class Packer:
    """Packs shards of a source into a folder.

    Arguments:
        pictures: of the source, by split.
        folder: where the shards go.
        layout: of all shards.
        workers: number of threads that decode.
        tick: is called about every TICK_SECONDS, by the thread that calls `pack_all`.

    `progress` has the counts at any time.
    """

    def __init__(
        self, pictures: Mapping[str, Pictures], folder: Folder, layout: Layout, workers: int, tick: Tick
    ) -> None:
        self._pictures, self._folder, self._layout = pictures, folder, layout
        self._workers, self._tick, self._ticked = workers, tick, 0.0
        self.progress, self._stop = Progress(), threading.Event()
        self._open: list[_Shard] = []

    def pack_all(self, tasks: Sequence[Task]) -> dict[str, Record]:
        """Pack the shards that are not finished; return the records of all, by the file's name.

        Raises ConfigError where a file cannot be written or the source cannot be read any more. No unfinished
        file is left then.
        """
        self.progress.pictures = sum(len(task.positions) for task in tasks)
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="pack")
        # Threads of its own: one that waits for the disk must not keep a core from decoding.
        ends = ThreadPoolExecutor(_ENDING + 1, thread_name_prefix="end")
        try:
            records = self._find(pool, tasks)
            records |= self._write_all(pool, ends, [task for task in tasks if task.file not in records])
            self._tick(self.progress)
            return records
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            ends.shutdown(wait=True, cancel_futures=True)
            for shard in self._open:
                shard.writer.close()
                with suppress(OSError):
                    shard.writer.path.unlink(missing_ok=True)

    def _find(self, pool: ThreadPoolExecutor, tasks: Sequence[Task]) -> dict[str, Record]:
        """Return the records of the shards that an earlier packing has finished."""
        looks = [(task, pool.submit(self._record_of, task)) for task in tasks]
        records = {}
        for task, look in looks:
            if (record := self._result(look)) is not None:
                records[task.file] = record
                self.progress.done += len(task.positions)
                self.progress.kept += len(task.positions)
                self.progress.rejected += len(record.rejected)
        return records

    def _write_all(
        self, pool: ThreadPoolExecutor, ends: ThreadPoolExecutor, tasks: Sequence[Task]
    ) -> dict[str, Record]:
        """Write shards one after the other, while threads decode what comes next."""
        records: dict[str, Record] = {}
        ending: deque[tuple[Task, Future[Record]]] = deque()
        waiting: deque[tuple[_Part, Future[list[_Outcome]]]] = deque()
        parts, shard = _parts(tasks, self._layout), None
        while True:
            for part in islice(parts, max(0, _WAITING * self._workers - len(waiting))):
                waiting.append((part, pool.submit(self._decode, part)))
            if not waiting:
                break
            part, decoded = waiting.popleft()
            outcomes = self._result(decoded)
            shard = shard or self._begin(part.task)
            self._write(shard, outcomes)
            if shard.left == 0:
                ending.append((shard.task, ends.submit(self._end, shard)))
                shard = None
            while len(ending) > _ENDING:
                task, ended = ending.popleft()
                records[task.file] = self._result(ended)
        return records | {task.file: self._result(ended) for task, ended in ending}

    def _begin(self, task: Task) -> _Shard:
        path = self._folder.temporary(task)
        with writing(path):
            writer = ShardWriter(path, task.split, task.index, self._layout)
        shard = _Shard(task, writer, len(task.positions))
        self._open.append(shard)
        return shard

    def _write(self, shard: _Shard, outcomes: Sequence[_Outcome]) -> None:
        """Write pictures to their shard, or note why they are rejected."""
        with writing(shard.writer.path):
            for picture, outcome in outcomes:
                if isinstance(outcome, str):
                    shard.rejected.append(Rejected(picture.split, picture.name, plain(outcome)))
                    self.progress.rejected += 1
                else:
                    shard.writer.add(outcome.data, picture.label, picture.name)
                    shard.histogram += outcome.histogram
        shard.left -= len(outcomes)
        self.progress.done += len(outcomes)

    # -- threads -------------------------------------------------------------------------------------

    def _record_of(self, task: Task) -> Record | None:
        """Return the record of a finished shard, unless one of its rejected pictures was mended meanwhile."""
        record = self._folder.record_of(task)
        if record is None or not record.rejected:
            return record
        before = {one.name: one.reason for one in record.rejected}
        pictures = self._pictures[task.split]
        positions = tuple(one for one in task.positions if pictures[one].name in before)
        outcomes = self._decode(_Part(task, positions))
        now = {picture.name: plain(outcome) for picture, outcome in outcomes if isinstance(outcome, str)}
        return record if now == before else None

    def _decode(self, part: _Part) -> list[_Outcome]:
        """Read and decode some pictures. Raises ConfigError where the source itself cannot be read."""
        outcomes, split = list[_Outcome](), part.task.split
        for position in part.positions:
            if self._stop.is_set():
                break
            picture = self._pictures[split][position]
            outcome: Packed | str
            try:
                outcome = pack(picture.read(), self._layout.side, self._layout.encoding, part.task.measured)
            except (SourceError, PictureError) as error:
                outcome = str(error)
            except FileError as error:
                reason = error.reason.partition(";")[0]
                raise ConfigError(message(SOURCE_SETTING, error.path, reason, _AGAIN)) from error
            except OSError as error:
                name = error.filename or picture.name
                reason, _ = because(error, name)
                raise ConfigError(message(SOURCE_SETTING, name, reason, _AGAIN)) from error
            outcomes.append((picture, outcome))
        return outcomes

    def _end(self, shard: _Shard) -> Record:
        """Sync, hash and rename a shard; return its record. Raises ConfigError."""
        values = np.arange(256)
        with writing(self._folder.path / shard.task.file):
            record = Record(
                shard.writer.finish(shard.task.file),
                tuple(shard.rejected),
                int(shard.histogram[0].sum()),
                tuple((shard.histogram @ values).tolist()),
                tuple((shard.histogram @ values**2).tolist()),
            )
            self._folder.keep(shard.task, record)
        self._open.remove(shard)
        return record

    # -- waiting -------------------------------------------------------------------------------------

    def _result(self, future: Future[T]) -> T:
        """Return the result of a thread's work; call `tick` while it is awaited."""
        while not future.done():
            wait([future], timeout=TICK_SECONDS)
            self._look()
        self._look()
        return future.result()

    def _look(self) -> None:
        """Call `tick`, unless it was called a moment ago."""
        if (now := time.monotonic()) - self._ticked >= TICK_SECONDS:
            self._ticked = now
            self._tick(self.progress)


def _parts(tasks: Sequence[Task], layout: Layout) -> Iterator[_Part]:
    """Yield the pictures of all shards in order, some at a time."""
    most = max(1, min(_PART, _PART_BYTES // layout.picture_bytes))
    for task in tasks:
        for begin in range(0, len(task.positions), most):
            yield _Part(task, task.positions[begin : begin + most])
