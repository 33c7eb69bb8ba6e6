# SPDX-License-Identifier: Apache-2.0
"""Start ranks in a test: by either MPI wheel's launcher, with a time limit after which no process is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]

#: Environment of each MPI: bin/setup-environment makes both.
ENVIRONMENTS = {"mpich": ROOT / ".venv", "openmpi": ROOT / ".venv-openmpi"}

#: Open MPI refuses root and more ranks than cores unless told otherwise; its one-sided UCX component needs a
#: network.
OPENMPI_VARIABLES = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_osc": "^ucx",
}


@cache
def available(mpi: str) -> bool:
    """Whether the environment of this MPI has its launcher; without the two environments, this Python's own
    counts."""
    return launcher(mpi).is_file()


def launcher(mpi: str) -> Path:
    """The mpiexec of this MPI."""
    return _bin(mpi) / "mpiexec"


def python(mpi: str) -> Path:
    """The Python whose mpi4py finds this MPI."""
    return _bin(mpi) / "python"


def variables(mpi: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that ranks get: this one, with the repository importable, and what the MPI needs."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    if mpi == "openmpi":
        env.update(OPENMPI_VARIABLES)
    env.update(extra or {})
    return env


def start(
    ranks: int,
    arguments: Sequence[str | Path],
    *,
    mpi: str = "mpich",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    launcher_arguments: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Starts `ranks` ranks of Python with `arguments` in a process group of their own, output in pipes."""
    command = [launcher(mpi), *launcher_arguments, "-n", str(ranks), python(mpi), *arguments]
    return subprocess.Popen(
        [str(part) for part in command],
        env=variables(mpi, env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(job: subprocess.Popen[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Waits for a job; one that is not over after `timeout` seconds is killed whole and raises
    TimeoutExpired."""
    try:
        out, err = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as late:
        kill(job)
        out, err = job.communicate()
        raise subprocess.TimeoutExpired(job.args, late.timeout, out, err) from None
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)


def processes(job: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the launcher, its proxies and its ranks, as long as the launcher lives.

    MPICH starts its proxies and each rank in a session of its own: no process group has them all.
    """
    try:
        launcher = psutil.Process(job.pid)
        return [launcher, *launcher.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_for_end(running: Sequence[psutil.Process], timeout: float = 20) -> None:
    """Wait until processes have ended, as a rank may outlive its launcher. Raises AssertionError."""
    limit = time.monotonic() + timeout
    while alive := [process for process in running if _runs(process)]:
        assert time.monotonic() < limit, f"still there after {timeout} s: {alive}"
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    """Whether a process has not ended; a zombie, which its new parent does not look after, has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(job: subprocess.Popen[str]) -> None:
    """End the launcher, its proxies and every rank by SIGKILL; nothing happens if the launcher has ended.

    Raises AssertionError where one of them stays.
    """
    if job.poll() is not None:
        return
    running = processes(job)
    for process in running:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    job.wait()
    wait_for_end(running)


def mpirun(
    ranks: int,
    arguments: Sequence[str | Path],
    *,
    mpi: str = "mpich",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    launcher_arguments: Sequence[str] = (),
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Runs `ranks` ranks to their end; see :func:`start` and :func:`finish`."""
    job = start(ranks, arguments, mpi=mpi, env=env, cwd=cwd, launcher_arguments=launcher_arguments)
    return finish(job, timeout)


def _bin(mpi: str) -> Path:
    folder = ENVIRONMENTS[mpi] / "bin"
    if mpi == "mpich" and not folder.is_dir():
        return Path(sys.executable).parent
    return folder
