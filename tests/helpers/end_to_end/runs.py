# SPDX-License-Identifier: Apache-2.0
"""Whole runs for the tests: tiny networks on made-up images, so that a trial takes a second and not its
compilation."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.output import journal
from aiperf_mpi.trials.record import PROPOSED
from tests.helpers import compiler, launch

#: Networks of 7 units on images of 16 x 16 pixels; two or three epochs of eight steps.
TINY = (
    "data.name='synthetic'",
    "data.image_size=16",
    "data.channels=1",
    "data.classes=4",
    "data.train_images=256",
    "data.val_images=60",
    "data.augmentation=none",
    "model.blocks=[1,1]",
    "model.width=4",
    "model.zero_gamma=true",
    "train.batch_per_device=32",
    "train.epochs=4",
    "train.round_epochs=[2,3]",
    "search.max_morphs=2",
    "search.max_units=12",
    "search.max_parameters=20000",
    "search.population=12",
    "search.sample_size=4",
    "hpo.batches=[16,32]",
    "parallel.host_devices=1",
    "parallel.history_capacity=2048",
    "run.tick=2.0",
    "result.partial_seconds=1.0",
    "monitor.seconds=2",
)

#: Networks of one block, which compile quickly.
SMALLEST = ("model.blocks=[1]", "model.width=2", "data.image_size=8", "search.max_parameters=2000")

#: Two replicas of two trainers with a device each.
TEAMS = (
    "parallel.host_devices=4",
    "parallel.trainers_per_node=4",
    "parallel.trainers_per_replica=2",
    *SMALLEST,
    "train.batch_per_device=8",
    "hpo.enabled=false",
)

#: The steps of all of these runs are compiled so, wherever they are started from.
QUICK_COMPILER = {"XLA_FLAGS": compiler.QUICK}

#: For runs that compare a time with that of a compilation: it must not be as short as possible.
COMPILER = {"XLA_FLAGS": compiler.FLAGS}

#: Core time of a run in which several trials end, on a machine that has compiled nothing yet and has other
#: work.
SECONDS = 29.0


@dataclass(frozen=True)
class Ended:
    """A run that has ended: exit code, what it printed, and its folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def lines(self) -> dict[str, str]:
        """The verdict's lines, by key."""
        lines = [
            line.removeprefix("AIPERF_MPI ")
            for line in self.out.splitlines()
            if line.startswith("AIPERF_MPI ")
        ]
        return dict(line.split(": ", 1) for line in lines)

    @property
    def result(self) -> Path:
        return self.folder / "result.h5"

    def table(self, name: str) -> dict[str, np.ndarray]:
        """The columns of a table of the result; strings as str."""
        with h5py.File(self.result) as file:
            return {k: v.asstr()[...] if v.dtype.kind == "O" else v[...] for k, v in file[name].items()}

    def text(self) -> str:
        """Everything that was printed, for a failing assertion."""
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def arguments(folder: Path, sets: Sequence[str] = (), *more: str, seconds: float = 15) -> list[str]:
    """The command line of a tiny run of `seconds` core seconds into `folder`."""
    words = [
        "-m",
        "aiperf_mpi",
        "run",
        "--output",
        str(folder),
        "--time-limit",
        str(seconds),
        "--view",
        "plain",
    ]
    for text in (*TINY, *sets):
        words += ["--set", text]
    return [*words, *more]


def start(
    ranks: int,
    folder: Path,
    sets: Sequence[str] = (),
    *more: str,
    seconds: float = 15,
    mpi: str = "mpich",
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """A tiny run under way."""
    words = arguments(folder, sets, *more, seconds=seconds)
    return launch.start(ranks, words, mpi=mpi, env=QUICK_COMPILER | dict(env or {}))


def finish(job: subprocess.Popen[str], folder: Path, timeout: float = 180) -> Ended:
    """The run's end."""
    done = launch.finish(job, timeout)
    return Ended(done.returncode, done.stdout, done.stderr, folder)


def run(
    ranks: int,
    folder: Path,
    sets: Sequence[str] = (),
    *more: str,
    seconds: float = 15,
    mpi: str = "mpich",
    env: Mapping[str, str] | None = None,
    timeout: float = 180,
) -> Ended:
    """A tiny run from start to end."""
    return finish(start(ranks, folder, sets, *more, seconds=seconds, mpi=mpi, env=env), folder, timeout)


def run_until(
    enough: Callable[[Run], bool],
    ranks: int,
    folder: Path,
    sets: Sequence[str] = (),
    *more: str,
    mpi: str = "mpich",
    timeout: float = 200,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """A tiny run that is drained once its journal holds `enough`, however fast the machine is: it must end
    with 4."""
    job = start(ranks, folder, sets, *more, seconds=3600, mpi=mpi, env=env)
    limit = time.monotonic() + timeout
    path = folder / "journal.jsonl"
    while (
        not (path.exists() and enough(journal.replay(path)))
        and job.poll() is None
        and time.monotonic() < limit
    ):
        time.sleep(0.3)
    job.send_signal(signal.SIGUSR1)
    return finish(job, folder, timeout=60)


def ended(run: Run) -> np.ndarray:
    """The rows of the trials that have ended; a run also has one of each trial that has begun."""
    return run.trials[np.isfinite(run.trials["t_end"])]


def trained(run: Run) -> dict[int, np.void]:
    """The PROPOSED records of the trials that have an epoch, by trial id."""
    proposed = {int(s): r for s, r in zip(run.slots, run.records, strict=True) if r["kind"] == PROPOSED}
    return {trial: proposed[trial] for trial in set(run.epochs["trial_id"].tolist()) & set(proposed)}


def gaps(ended: Ended) -> np.ndarray:
    """Return the seconds from the last counted batch of each trial to the next trial's first step.

    NaN after a trial without a batch.
    """
    trials, epochs = ended.table("trials"), ended.table("epochs")
    used = np.flatnonzero(np.isfinite(trials["t_first_step"]))
    used = used[np.argsort(trials["t_start"][used])]
    ends = [epochs["t_end"][epochs["trial_id"] == trial] for trial in trials["trial_id"][used]]
    last = [times.max() if len(times) else np.nan for times in ends]
    return trials["t_first_step"][used][1:] - np.array(last)[:-1]
