# SPDX-License-Identifier: Apache-2.0
"""Exit 4 means that this run's result is written: without one a drain is a failure, in true words."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from aiperf_mpi.results.judge.judge import judge
from tests.helpers import launch
from tests.helpers.end_to_end import runs

pytestmark = pytest.mark.mpi

BOTH = ("mpich", "openmpi")


def _deleted(folder: Path, pid: int) -> None:
    shutil.rmtree(folder)


def _moved(folder: Path, pid: int) -> None:
    folder.rename(folder.with_name("moved"))


def _file_in_its_place(folder: Path, pid: int) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def _writer_killed(folder: Path, pid: int) -> None:
    ranks = psutil.Process(pid).children(recursive=True)
    next(p for p in ranks if "aiperf_mpi.results.output.process" in p.cmdline()).kill()


def _full_disk(folder: Path, pid: int) -> None:
    with (folder.parent / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(1 << 20))
    # What is left of the last block.
    with (folder.parent / "rest").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(512))


def _immutable(folder: Path, pid: int) -> None:
    done = subprocess.run(["chattr", "+i", folder], capture_output=True, timeout=10, check=False)
    if done.returncode:
        pytest.skip("this file system has no immutable folders")


#: What happens to the output in the core time, and a word of the message about what is left.
LOSSES: dict[str, tuple[Callable[[Path, int], None], str]] = {
    "deleted": (_deleted, "start the run again"),
    "moved": (_moved, "start the run again"),
    "file": (_file_in_its_place, "start the run again"),
    "writer killed": (_writer_killed, "verify --repair"),
    "full disk": (_full_disk, "verify --repair"),
    "immutable": (_immutable, "verify --repair"),
}


@contextmanager
def place(name: str, folder: Path) -> Iterator[Path]:
    """Give a folder for outputs: for a full disk a small file system; free again what is immutable."""
    root = os.geteuid() == 0
    if name in ("full disk", "immutable") and not root:
        pytest.skip("only root can mount a file system or make a folder immutable")
    if name != "full disk":
        try:
            yield folder
        finally:
            if name == "immutable":
                subprocess.run(["chattr", "-R", "-i", folder], capture_output=True, timeout=10, check=False)
        return
    small = folder / "small"
    small.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", small]
    if subprocess.run(words, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield small
    finally:
        subprocess.run(["umount", "-l", small], check=True, timeout=10)


def wait_for_start(folder: Path, job: subprocess.Popen[str], timeout: float = 150) -> None:
    """Wait until the core time of a run has started."""
    limit, path = time.monotonic() + timeout, folder / "journal.jsonl"
    while time.monotonic() < limit and job.poll() is None:
        if path.exists() and b'"kind":"start"' in path.read_bytes():
            return
        time.sleep(0.1)
    raise TimeoutError(f"the run did not start its core time: {runs.finish(job, folder, 10).text()}")


@pytest.mark.parametrize(
    ("mpi", "name"),
    [
        pytest.param(mpi, name, marks=() if (mpi, name) == ("mpich", "moved") else pytest.mark.full)
        for mpi in BOTH
        for name in LOSSES
    ],
)
def test_a_drain_without_a_result_is_a_failure(mpi: str, name: str, tmp_path: Path) -> None:
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi} ({launch.launcher(mpi)}): see bin/test")
    lose, left = LOSSES[name]
    with place(name, tmp_path) as parent:
        folder = parent / "run"
        job = runs.start(3, folder, ("result.partial_seconds=3600",), seconds=600, mpi=mpi)
        wait_for_start(folder, job)
        lose(folder, job.pid)
        job.send_signal(signal.SIGUSR1)
        ended = runs.finish(job, folder, timeout=90)
        assert ended.code == 5, ended.text()
        assert (ended.lines.get("status"), ended.lines.get("reasons")) == ("INVALID", "V21"), ended.text()
        assert "no result" in ended.err and left in ended.err, ended.text()
        assert "is written" not in ended.err and "Traceback" not in ended.err, ended.text()
        if left == "verify --repair":
            # The remedy of the message works, once its cause is gone.
            subprocess.run(["chattr", "-i", folder], capture_output=True, timeout=10, check=False)
            (parent / "filler").unlink(missing_ok=True)
            words = [launch.python("mpich"), "-m", "aiperf_mpi", "verify", "--repair", str(folder)]
            done = subprocess.run(
                words, env=launch.variables("mpich"), capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 3 and "AIPERF_MPI reasons: " in done.stdout, done.stderr


@pytest.mark.parametrize("mpi", ["mpich", pytest.param("openmpi", marks=pytest.mark.full)])
def test_a_run_drained_before_its_first_step_is_invalid(mpi: str, tmp_path: Path) -> None:
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi} ({launch.launcher(mpi)}): see bin/test")
    folder = tmp_path / "run"
    job = runs.start(3, folder, seconds=600, mpi=mpi)
    wait_for_start(folder, job)
    job.send_signal(signal.SIGUSR1)
    ended = runs.finish(job, folder, timeout=90)
    assert ended.code == 4, ended.text()
    verdict = judge(ended.result)
    if verdict.total_ops:
        pytest.skip("the first candidate was compiled before the signal arrived")
    assert ended.lines["status"] == "INVALID" and "I15" in ended.lines["reasons"], ended.text()
    assert list(ended.lines)[-1] == "why" and "nothing was trained" in ended.lines["why"]
    assert "left" not in ended.err.rsplit("ending", 1)[-1]
