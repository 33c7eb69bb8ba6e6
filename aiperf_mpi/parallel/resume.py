# SPDX-License-Identifier: Apache-2.0
"""Resume a run in its own folder: hold it, read its journal, and give each rank what it goes on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from aiperf_mpi.config import Config, ConfigError, from_toml
from aiperf_mpi.config.paths import message
from aiperf_mpi.ending import lines, write_error
from aiperf_mpi.exits import EXIT_FAILURE, EXIT_VALID
from aiperf_mpi.parallel.coordinator.progress import Progress
from aiperf_mpi.parallel.launch.job import MPI, agreed_exit
from aiperf_mpi.parallel.launch.launcher import LaunchError
from aiperf_mpi.parallel.launch.ranks import Ranks
from aiperf_mpi.parallel.launch.start import LOOK_SECONDS, share, together
from aiperf_mpi.parallel.preflight import Facts
from aiperf_mpi.parallel.prepared import Prepared
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.history import restore
from aiperf_mpi.planning.folder import CHECKPOINTS, RUNNING
from aiperf_mpi.printable import plain
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.file.restored import NEW, Restored
from aiperf_mpi.results.file.rows import UNFINISHED, RunHeader
from aiperf_mpi.results.output.client import WriterClient
from aiperf_mpi.results.output.package import RESULT
from aiperf_mpi.results.output.resumption import finished, read_past, restored

_ANEW = "start a new run, without --resume"


class Resumption:
    """What rank 0 knows of a run that is resumed; the other ranks know `restored` and `done` alone.

    Attributes:
        restored: what the next segment begins with.
        done: that the run has finished already, in words; "" where it goes on.
        run: as its journal tells it.
    """

    def __init__(self, restored: Restored = NEW, done: str = "", run: Run | None = None) -> None:
        self.restored, self.done, self.run = restored, done, run

    @property
    def header(self) -> RunHeader | None:
        """The header of the segment before this one; None in a new run."""
        return None if self.run is None else self.run.header

    @property
    def run_id(self) -> str:
        """The identifier of the run, "" of a new one."""
        return "" if self.header is None else self.header.run_id


def take_over(config: Config, ranks: Ranks, writer: WriterClient | None) -> Resumption:
    """Return what a resumed run goes on with, in the folder `run.output`. Collective.

    Raises AgreedError on all ranks where the folder is held by another process, or its run cannot go on.
    """
    own = Resumption()

    def read() -> str:
        nonlocal own
        folder = Path(config.run.output)
        if writer is not None:
            hold(writer, folder)
        run = read_past(folder)
        done = finished(run, config.run.time_limit, folder)
        past = NEW if done else restored(run, folder, config, ranks.n_replicas, states_of(config))
        own = Resumption(past, done, run)
        return json.dumps([own.restored.to_json(), done])

    text, done = json.loads(share("the run's segments before this one", read))
    return own if ranks.rank == 0 else Resumption(Restored.from_json(text), done)


def states_of(config: Config) -> Callable[[int, int], int]:
    """Return the function that finds the newest state of a trial on the disk with at most so many epochs."""
    if not (folder := Path(config.run.output) / CHECKPOINTS / RUNNING).is_dir():
        return lambda trial, most: 0
    # This imports JAX, which rank 0 does not use.
    from aiperf_mpi.training.epoch_files import epoch_files

    def newest(trial: int, most: int) -> int:
        return next((file.epochs for file in epoch_files(folder, trial) if file.epochs <= most), 0)

    return newest


def hold(writer: WriterClient, folder: Path) -> None:
    """Have the writer hold the folder. Raises LaunchError where another process does."""
    writer.send_lock(folder)
    while not (writer.status().locked or writer.status().errors):
        writer.pump()
        time.sleep(LOOK_SECONDS)
    if writer.status().errors:
        raise LaunchError(plain(writer.status().errors[0]))


def check_same(config: Config, facts: Facts, resumption: Resumption) -> None:
    """Check on rank 0 that the data and the devices of each replica are those of the run. Collective.

    Raises AgreedError on all ranks, with what differs. Nothing is compared in a new run.
    """
    if not resumption.restored.segments:
        return

    def compare() -> None:
        past = resumption.header
        if past is None:
            return
        each = past.n_devices // max(past.n_replicas, 1)
        for what, before, now in (
            ("the data set has the hash", past.dataset_sha256, facts.dataset_sha256),
            ("a replica has so many devices:", each, facts.n_devices),
            ("the precision is", past.precision, config.train.precision),
            ("the forms of layers are", _forms_of(past), config.train.forms),
        ):
            if before != now:
                reason = f"{what} {now}, but in the run's segments before {before}"
                raise ConfigError(
                    message("--resume", config.run.output, reason, f"give it the same, or {_ANEW}")
                )

    together("data and devices of the resumed run", compare)


def _forms_of(header: RunHeader) -> str:
    """Return the forms of layers that a segment used."""
    return from_toml(header.config_toml).train.forms


def leave_finished(prepared: Prepared, past: Resumption, world: MPI.Intracomm) -> NoReturn:
    """End the job of a run that has finished before, with exit code 0 where its result is there.
    Collective."""
    prepared.drop()
    code = EXIT_VALID
    if world.rank == 0:
        write_error(lines(past.done))
        has_result = prepared.config is not None and (Path(prepared.config.run.output) / RESULT).is_file()
        code = EXIT_VALID if has_result else EXIT_FAILURE
    agreed_exit(world, code)


# -- what each role goes on with --------------------------------------------------------------------


def restore_history(context: Context) -> None:
    """Fill history and claims on rank 0, before any other rank reads them."""
    past, windows = context.resumed, context.windows
    restore(windows.history, past.slots, past.records)
    for key in past.keys:
        windows.claims.claim(key)
    for record in past.added:
        windows.history.append(record)


def restore_queue(context: Context) -> None:
    """Put the candidates that wait for this replica into its queue; its first trainer does, before the core
    time."""
    ranks, history = context.ranks, context.windows.history
    queue = context.windows.queues[ranks.queue_group_replicas.index(ranks.replica)]
    history.refresh()
    queue.restore({trial: history.record(trial) for trial in context.resumed.waiting.get(ranks.replica, ())})


def progress_of(context: Context, run: Run | None) -> Progress:
    """Return the progress of the run up to the start of this segment, for the view."""
    progress = Progress(context.ranks.n_replicas)
    past = context.resumed
    for slot, record in past.records.items():
        progress.record(slot, record)
    if run is not None:
        rows = run.epochs
        kept = [past.taken.again.get(trial, np.iinfo(np.int32).max) for trial in rows["trial_id"].tolist()]
        for row in rows[rows["epoch"] < np.array(kept, np.int64)]:
            progress.epoch(row)
        for row in run.trials:
            if row["status"] != UNFINISHED:
                progress.trial(row)
    progress.lost, progress.last_t = 0, past.taken.core_seconds
    progress.lines.clear()
    return progress
