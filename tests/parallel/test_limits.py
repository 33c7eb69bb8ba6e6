# SPDX-License-Identifier: Apache-2.0
"""Limits that a job meets: doctor tells them alone and under a launcher; a run is refused in its start."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.helpers import launch

pytestmark = pytest.mark.mpi

RUN = ("-m", "aiperf_mpi", "--preset", "demo", "--time-limit", "600", "--output", "run")
DOCTOR = ("-m", "aiperf_mpi", "doctor", *RUN[2:])

#: Ranks of a machine with other work may wait longer for one another.
PATIENT = {"AIPERF_MPI_INIT_SECONDS": "60", "COLUMNS": "1000"}


@pytest.fixture
def group() -> Iterator[Path]:
    """Make a control group that allows 24 processes and threads, in which a run cannot end."""
    folder = Path(f"/sys/fs/cgroup/pids/aiperf_mpi-limits-{os.getpid()}")
    try:
        folder.mkdir()
        (folder / "pids.max").write_text("24")
    except OSError as error:
        pytest.skip(f"no control group of processes can be made (version 1): {error.strerror}")
    yield folder
    # The last processes of a launcher may end a moment after it.
    deadline = time.monotonic() + 20
    while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    folder.rmdir()


def refused(mpi: str, before: str, words: Sequence[str], ranks: int, cwd: Path) -> str:
    """Run these words of Python after `before`, a command, on `ranks` ranks or alone; return the output."""
    command = [str(word) for word in (launch.python(mpi), *words)]
    if ranks:
        command = [str(launch.launcher(mpi)), "-n", str(ranks), *command]
    done = subprocess.run(
        ["bash", "-c", f'{before} && exec "$@"', "bash", *command],
        env=launch.variables(mpi, PATIENT),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 2 and list(cwd.iterdir()) == [], told
    assert "Traceback" not in told
    return " ".join(told.split())


@pytest.mark.parametrize(("words", "ranks"), [(DOCTOR, 0), (DOCTOR, 3), (RUN, 3)])
def test_too_few_processes(mpi: str, group: Path, words: Sequence[str], ranks: int, tmp_path: Path) -> None:
    told = refused(mpi, f"echo $$ > {group}/cgroup.procs", words, ranks, tmp_path)
    assert "more processes and threads are needed, but" in told
    assert f"{group}/pids.max leaves" in told and "TasksMax=" in told


@pytest.mark.parametrize(("words", "ranks"), [(DOCTOR, 0), (RUN, 3)])
def test_too_little_cpu_time(mpich: str, words: Sequence[str], ranks: int, tmp_path: Path) -> None:
    told = refused(mpich, "ulimit -t 300", words, ranks, tmp_path)
    assert "at least 600 CPU seconds are needed, but ulimit -t leaves" in told
    assert "ulimit -t unlimited" in told
