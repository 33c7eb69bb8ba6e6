# SPDX-License-Identifier: Apache-2.0
"""Runs that start at one moment each have a folder of their own, or one of them is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from aiperf_mpi.planning.folder import OWNER, claim, read_owner
from aiperf_mpi.results.judge.judge import judge_file
from tests.helpers import launch
from tests.helpers.end_to_end import runs

pytestmark = pytest.mark.mpi

#: Each under one MPI in every run of the tests, under the other with --full.
BOTH = ["mpich", pytest.param("openmpi", marks=pytest.mark.full)]


class Job:
    """A tiny run of two ranks, whose standard error is read as it comes."""

    def __init__(self, mpi: str, cwd: Path, output: str = "") -> None:
        words = runs.arguments(cwd / output, seconds=600)
        if not output:
            words = [*words[:3], *words[5:]]
            assert "--output" not in words
        self.job = launch.start(2, words, mpi=mpi, env=runs.QUICK_COMPILER, cwd=cwd)
        self.err = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.job.stderr is not None
        for line in self.job.stderr:
            self.err += line

    def until(self, *texts: str, seconds: float = 60) -> None:
        """Wait until standard error has one of the texts, or the job has ended."""
        limit = time.monotonic() + seconds
        while not any(text in self.err for text in texts) and self.job.poll() is None:
            assert time.monotonic() < limit, self.err
            time.sleep(0.05)

    def end(self, seconds: float = 60) -> int:
        """Wait for the end of the job and return its exit code."""
        try:
            return self.job.wait(seconds)
        finally:
            launch.kill(self.job)
            self._reader.join(10)


def ended(job: Job) -> None:
    """Drain a job in its core time; its result is that of its own run."""
    job.job.send_signal(signal.SIGUSR1)
    assert job.end() == 4, job.err


def own_result(folder: Path) -> None:
    """Check that the result in a folder is of the run that owns it."""
    owner = read_owner(folder)
    assert owner is not None
    assert judge_file(folder / "result.h5")[0].attributes["run_id"] == owner.run_id


@pytest.mark.parametrize("mpi", BOTH)
def test_a_run_is_refused_the_folder_of_another(mpi: str, tmp_path: Path) -> None:
    """Another run has just made it and has written nothing else yet."""
    owned = claim(tmp_path / "one", "other")
    done = launch.mpirun(2, runs.arguments(owned.path), mpi=mpi, timeout=60)
    ours = [line for line in done.stderr.splitlines() if "aiperf_mpi" in line]
    assert done.returncode == 2 and len(ours) == 1, done.stderr
    assert f"--output {owned.path}: belongs to another run (process {os.getpid()} on host " in ours[0]
    assert [path.name for path in owned.path.iterdir()] == [OWNER] and not owned.lost()


@pytest.mark.full
@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_the_second_of_two_runs_with_one_folder_is_refused(mpi: str, tmp_path: Path) -> None:
    """It is refused before its core time, and told which run owns the folder; the first is not disturbed."""
    jobs = [Job(mpi, tmp_path, "runs/one") for _ in range(2)]
    for job in jobs:
        job.until("core time starts", "belongs to another run")
    winner, loser = sorted(jobs, key=lambda job: "belongs" in job.err)
    assert loser.end() == 2 and winner.job.poll() is None, loser.err
    ours = [line for line in loser.err.splitlines() if "aiperf_mpi" in line]
    assert len(ours) == 1 and f"--output {tmp_path}/runs/one: belongs to another run (process " in ours[0]
    assert " on host " in ours[0] and "name another" in ours[0] and "core time" not in loser.err
    ended(winner)
    own_result(tmp_path / "runs" / "one")


@pytest.mark.full
@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_two_runs_without_a_folder_in_one_second_get_two(mpi: str, tmp_path: Path) -> None:
    jobs = [Job(mpi, tmp_path) for _ in range(2)]
    for job in jobs:
        job.until("core time starts")
    for job in jobs:
        ended(job)
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        own_result(folder)


@pytest.mark.full
@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_a_folder_taken_over_in_the_core_time_is_not_judged(mpi: str, tmp_path: Path) -> None:
    """Someone moves the folder away and starts another run in its place: this run has no result (exit 5), and
    says nothing of the other run's file."""
    job = Job(mpi, tmp_path, "one")
    job.until("core time starts")
    (tmp_path / "one").rename(tmp_path / "moved")
    (tmp_path / "one").mkdir()
    shutil.copy(tmp_path / "moved" / OWNER, tmp_path / "one" / OWNER)
    text = (tmp_path / "one" / OWNER).read_text()
    owner = read_owner(tmp_path / "one")
    assert owner is not None
    (tmp_path / "one" / OWNER).write_text(text.replace(owner.run_id, "other"))
    job.job.send_signal(signal.SIGUSR1)
    out = job.job.stdout
    assert out is not None
    said = out.read()
    assert job.end() == 5, job.err
    assert "belongs to another run now" in job.err and "AIPERF_MPI status: INVALID" in said
    assert not list((tmp_path / "one").glob("*.h5")) and not list((tmp_path / "one").glob("journal*"))


@pytest.mark.parametrize("mpi", BOTH)
def test_a_host_that_does_not_see_the_folder_says_so(mpi: str, tmp_path: Path) -> None:
    """Rank 1 has a file system of its own where rank 0 makes the folder, and there a folder of the same name,
    as nodes with a local /scratch have."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, timeout=10).returncode:
        pytest.skip("no mount namespace can be made here")
    (tmp_path / "scratch").mkdir()
    words = [launch.python(mpi), *runs.arguments(tmp_path / "scratch" / "run")]
    script = tmp_path / "alone"
    script.write_text(
        f'#!/bin/sh\nmount -t tmpfs none {tmp_path}/scratch && mkdir {tmp_path}/scratch/run && exec "$@"\n'
    )
    script.chmod(0o755)
    command = [launch.launcher(mpi), "-n", "1", *words, ":", "-n", "1", "unshare", "-m", script, *words]
    start = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command],
        env=launch.variables(mpi),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if "aiperf_mpi" in line]
    assert done.returncode == 2 and len(ours) == 1, done.stderr
    assert "rank 1 on host " in ours[0] and "does not see the output folder" in ours[0]
    assert "name one with --output" in ours[0] and time.monotonic() - start < 30
    assert list((tmp_path / "scratch").iterdir()) == []
