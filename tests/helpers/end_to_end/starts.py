# SPDX-License-Identifier: Apache-2.0
"""Starts of a job that end before the core time: by a fault at one point of one rank, or by a signal."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.helpers import launch
from tests.helpers.end_to_end import runs

#: The program that raises at a point of the start, and its exit code at the core time.
FAULTY, REACHED = launch.ROOT / "tests" / "programs" / "parallel" / "launch" / "faulty.py", 77

#: A rank and a host at the start of a message.
HEAD = re.compile(r"aiperf_mpi: (rank \d+ on host [^\s:]+)(?: and \d+ more)?: ")

#: Calls of a rank that waits: they are many, and the same place.
WAITING = ("Iprobe#", "Barrier#")

#: Run a command with an empty /dev/shm, and note what it leaves there.
_APART = 'mount -t tmpfs tmpfs /dev/shm && "$@"; code=$?; ls /dev/shm > "$0"; exit $code'


@dataclass(frozen=True)
class Start:
    """A start that has ended.

    Attributes:
        code, err: exit code and standard error.
        seconds: from the fault or the signal to the end of the launcher.
        left: names in the output's parent after the end.
        segments: files left in /dev/shm; None where it cannot be told.
    """

    code: int
    err: str
    seconds: float
    left: tuple[str, ...]
    segments: tuple[str, ...] | None

    @property
    def ours(self) -> list[str]:
        """The lines of the program, without its warnings, and without why the run is a trial."""
        lines = self.err.replace("\0", "").splitlines()
        told = (": warning: ", "aiperf_mpi: this run is a trial")
        return [
            line
            for line in lines
            if line.startswith("aiperf_mpi: ") and not any(words in line for words in told)
        ]

    @property
    def heads(self) -> set[str]:
        """Rank and host of each message; of one line that compares ranks, the line; "" for others."""
        if len(self.ours) == 1 and "on rank" in self.ours[0]:
            return set(self.ours)
        found = [HEAD.match(line) for line in self.ours]
        return {match.group(1) if match else "" for match in found}

    def row(self, name: str) -> str:
        """Return a row of the table of ends."""
        return f"| {name} | {self.code} | {self.seconds:.1f} | {(self.ours or ['-'])[-1][:150]} |"


def apart() -> bool:
    """Whether a command can have a /dev/shm of its own here (root, and mount namespaces)."""
    if os.geteuid() or shutil.which("unshare") is None:
        return False
    words = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /dev/shm"]
    return subprocess.run(words, capture_output=True, timeout=10).returncode == 0


def begin(
    mpi: str, folder: Path, program: Sequence[str | Path], ranks: int = 3, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a tiny run whose output is in the empty folder `folder`/out."""
    (folder / "out").mkdir(parents=True)
    words = runs.arguments(folder / "out" / "run", seconds=600)[2:]
    command = [launch.launcher(mpi), "-n", str(ranks), launch.python(mpi), *program, *words]
    if apart():
        command = ["unshare", "-m", "sh", "-c", _APART, folder / "segments", *command]
    with (folder / "err").open("w") as err:
        return subprocess.Popen(
            [str(word) for word in command],
            env=launch.variables(mpi, runs.QUICK_COMPILER | (env or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
            text=True,
            start_new_session=True,
        )


def end(job: subprocess.Popen[str], folder: Path, since: float | None = None, limit: float = 60) -> Start:
    """Wait for the end of a start; `since` is the time of the signal, by default that of the fault."""
    try:
        code = job.wait(limit)
    finally:
        launch.kill(job)
    ended, stamp, segments = time.time(), folder / "stamp", folder / "segments"
    if since is None:
        since = float(stamp.read_text()) if stamp.exists() else ended
    # The writer outlives rank 0 for a moment.
    deadline = time.monotonic() + 3
    while os.listdir(folder / "out") and time.monotonic() < deadline:
        time.sleep(0.1)
    return Start(
        code,
        (folder / "err").read_text(errors="replace"),
        ended - since,
        tuple(os.listdir(folder / "out")),
        tuple(segments.read_text().split()) if segments.exists() else None,
    )


def faulty(mpi: str, folder: Path, fault: str, rank: int) -> Start:
    """Return how a start ends with a fault at a point of a rank; see tests/programs/.../faulty.py."""
    env = {"FAULT": fault, "FAULT_RANK": str(rank), "FAULT_FOLDER": str(folder)}
    return end(begin(mpi, folder, [FAULTY], env=env), folder)


def points(mpi: str, folder: Path, count: int, seed: str) -> list[tuple[str, int]]:
    """Return `count` points of a whole start with their ranks, drawn evenly over kinds and ranks."""
    begun = end(begin(mpi, folder, [FAULTY], env={"FAULT_FOLDER": str(folder)}), folder)
    assert begun.code in (REACHED, 1), begun
    rng, drawn, kinds = random.Random(seed), [], ("import", "open", "mpi", "call")
    for number in range(count):
        rank = number // len(kinds) % 3
        seen = json.loads((folder / f"seen.{rank}.json").read_text())
        kind = kinds[number % len(kinds)] if seen[kinds[number % len(kinds)]] else "mpi"
        names = [
            name
            for name in dict.fromkeys(seen[kind])
            if not name.startswith(WAITING) and not name.endswith(".pyc")
        ]
        drawn.append((f"{kind} {rng.choice(names)}", rank))
    return drawn


def ranks_of(job: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes of a job that are ranks."""
    found = psutil.Process(job.pid).children(recursive=True)
    return [one for one in found if "-m" in one.cmdline() and "aiperf_mpi" in one.cmdline()]


def process_of(job: subprocess.Popen[str], rank: int) -> psutil.Process:
    """Return the process of a rank. Raises StopIteration where it does not run yet."""
    names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
    return next(one for one in ranks_of(job) if str(rank) in (one.environ().get(name) for name in names))


def launcher_of(job: subprocess.Popen[str]) -> psutil.Process:
    """Return the launcher's process, which a shell may have started."""
    found = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    return next(one for one in found if one.name().startswith(("mpiexec", "prterun", "mpirun")))


def caught(job: subprocess.Popen[str], ranks: int = 3, limit: float = 60) -> None:
    """Wait until all ranks of a job catch SIGTERM, which is among the first things that they do."""
    bit, deadline = 1 << (signal.SIGTERM - 1), time.monotonic() + limit
    for rank in range(ranks):
        while True:
            with contextlib.suppress(StopIteration, psutil.Error, FileNotFoundError):
                status = Path(f"/proc/{process_of(job, rank).pid}/status").read_text()
                if int(dict(line.split(":", 1) for line in status.splitlines())["SigCgt"], 16) & bit:
                    break
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {rank} does not catch SIGTERM after {limit:g} s")
            time.sleep(0.02)


def signalled(
    mpi: str, folder: Path, number: signal.Signals, delay: float, rank: int | None = None, early: bool = False
) -> Start:
    """Return how a start ends with a signal to the launcher or to one rank alone, `delay` s after all ranks
    catch signals; with `early`, that long after the launcher's start, when Python may not run yet."""
    job = begin(mpi, folder, ["-m", "aiperf_mpi"])
    if not early:
        caught(job)
    time.sleep(delay)
    target = launcher_of(job) if rank is None else process_of(job, rank)
    target.send_signal(number)
    return end(job, folder, time.time())
