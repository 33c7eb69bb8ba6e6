# SPDX-License-Identifier: Apache-2.0
"""How a process ends its job: what is said of an error, the launcher's end, and the files of MPI."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aiperf_mpi import ending
from aiperf_mpi.config import ConfigError
from aiperf_mpi.launchers import LAUNCHER_PREFIXES, LAUNCHERS, LOCAL, abort_by_launcher, local_size, rank_of
from aiperf_mpi.segments import remove_segments
from tests.helpers import launch


def test_what_is_said_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "process", ending.Process(rank=3, host="node7", step="data"))
    assert ending.describe(ConfigError("data.path: absent")) == (2, "data.path: absent")
    code, text = ending.describe(PermissionError(errno.EACCES, "Permission denied", "/data/x"))
    assert code == 2 and text.startswith("data: /data/x: Permission denied; ") and "\n" not in text
    code, text = ending.describe(ZeroDivisionError("of samples"))
    assert code == 5 and text.splitlines()[-1] == (
        "step 'data': ZeroDivisionError: of samples; all ranks end with exit code 5"
    )
    # An error of the core time is a failure, also one that a start would refuse.
    ending.process.core = True
    assert ending.describe(ConfigError("data.path: absent"))[0] == 5


class Wordless(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "words"),
    [(Wordless(), "Wordless: an error without"), (OSError(9, "Bad file", 77), "77: Bad file")],
)
def test_any_error_is_described(error: Exception, words: str) -> None:
    assert words in ending.describe(error)[1]


def test_a_message_has_its_rank_in_each_line() -> None:
    assert ending.lines("a\nb\x1b[2J", "rank 3 on host n") == (
        "aiperf_mpi: rank 3 on host n: a\naiperf_mpi: rank 3 on host n: b\\x1b[2J\n"
    )


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({"PMI_RANK": "2"}, 2),
        ({"OMPI_COMM_WORLD_RANK": "1", "SLURM_PROCID": "0"}, 1),
        ({"PMI_RANK": "x"}, None),
    ],
)
def test_the_rank_by_the_launcher(environ: dict[str, str], rank: int | None) -> None:
    assert rank_of(environ) == rank


SRUN = {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}


@pytest.mark.parametrize(
    ("environ", "size"),
    [
        ({}, 1),
        (SRUN | {"SLURM_NODEID": "2"}, 2),
        (SRUN | {"SLURM_NODEID": "3"}, 1),
        # The option of the job is not that of the step.
        (SRUN | {"SLURM_NODEID": "3", "SLURM_NTASKS_PER_NODE": "4"}, 1),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "16", "SLURM_NODEID": "0"}, 16),
        (SRUN, 2),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x", "SLURM_NTASKS_PER_NODE": "4"}, 4),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": ""}, 1),
        # What mpiexec starts in a step has the variables of both.
        (SRUN | {"MPI_LOCALNRANKS": "3", "MPI_LOCALRANKID": "1"}, 3),
    ],
)
def test_the_ranks_of_a_host_by_the_launcher(environ: dict[str, str], size: int) -> None:
    assert local_size(environ) == size


def test_no_child_inherits_the_rank_of_a_launcher() -> None:
    names = {name for row in (*LAUNCHERS, *LOCAL) for name in row if "_" in name and name.isupper()}
    assert len(names) > 12 and all(name.startswith(LAUNCHER_PREFIXES) for name in names)


def test_only_files_of_mpi_are_removed(tmp_path: Path) -> None:
    names = ("mpich_shm_1_0", "sm_segment.h.0", "dataset.bin", "osc_rdma.h")
    for name in names:
        (tmp_path / name).touch()
    maps = tmp_path / "maps"
    start = "7f00-7f01 rw-s 00000000 00:19 42        "
    maps.write_text("".join(f"{start}{tmp_path / name}\n" for name in names[:3]) + "7f02-7f03 r--p 0 0 0\n")
    remove_segments(str(maps), f"{tmp_path}/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.bin", "maps", "osc_rdma.h"]


@pytest.mark.parametrize("connected", [False, True])
def test_the_launcher_is_asked_to_end_the_job(connected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=1\n")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    abort_by_launcher(5, connected, {"PMI_FD": str(ours.fileno())})
    first = b"" if connected else b"cmd=init pmi_version=1 pmi_subversion=1\n"
    assert theirs.recv(1000) == first + b"cmd=abort exitcode=5\n"


def test_a_signal_that_comes_in_a_blocked_call_ends_the_process() -> None:
    # The main thread waits in calls of C that a signal interrupts, but it never ends.
    script = (
        "import ctypes, os, signal, threading; from aiperf_mpi.ending import watch\n"
        "watch.start()\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "while True: ctypes.CDLL(None).sleep(30)\n"
    )
    started = time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(launch.ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 5 and time.monotonic() - started < 10
    assert "SIGTERM before the core time" in done.stderr


def test_a_wait_is_bounded() -> None:
    script = (
        "import ctypes; from aiperf_mpi.ending import watch\n"
        "watch.start()\n"
        "with watch.bound('waits for nothing', 1.0, 'do this'): ctypes.CDLL(None).sleep(30)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(launch.ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "waits for nothing for 1 s; do this" in done.stderr


def test_the_time_in_which_a_process_is_stopped_is_no_wait() -> None:
    script = (
        "import time; from aiperf_mpi.ending import watch\n"
        "watch.start()\n"
        "with watch.bound('waits for nothing', 3.0, 'do this'):\n"
        "    print('waits', flush=True)\n"
        "    before = time.process_time()\n"
        "    while time.process_time() - before < 1: pass\n"
        "print('went on')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(launch.ROOT)}
    job = subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None and job.stdout.readline() == "waits\n"
    job.send_signal(signal.SIGSTOP)
    time.sleep(4)
    job.send_signal(signal.SIGCONT)
    out, _ = job.communicate(timeout=60)
    assert (job.returncode, out) == (0, "went on\n")


# -- an end that meets an obstacle


def ended(script: str, **options: Any) -> tuple[int, str, float]:
    """Return exit code, standard error and seconds of a program that ends its job."""
    begun = time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(launch.ROOT)}
    start = (
        "import os, sys, threading, time; from aiperf_mpi import ending; from aiperf_mpi.ending import *\n"
    )
    command = [sys.executable, "-c", start + script]
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, timeout=60, **options)
    return done.returncode, done.stderr, time.monotonic() - begun


def test_an_end_where_no_thread_is_left() -> None:
    script = (
        "def refuse(thread): raise RuntimeError('cannot start new thread')\n"
        "threading.Thread.start = refuse\n"
        "end_job(5, 'the cause')\n"
    )
    code, told, _ = ended(script)
    assert code == 5 and told.startswith("aiperf_mpi: rank ? on host ") and "the cause" in told


@pytest.mark.parametrize("threads", [True, False])
def test_an_end_whose_clean_up_hangs(threads: bool) -> None:
    refuse = "def refuse(thread): raise RuntimeError('cannot start new thread')\n"
    script = (
        f"{'' if threads else refuse + 'threading.Thread.start = refuse' + chr(10)}"
        "ending._END_SECONDS = 1.0\n"
        "process.cleanups.append(lambda: time.sleep(40))\n"
        "end_job(5, 'the cause', patience=0.5)\n"
    )
    code, _, seconds = ended(script)
    # Without threads the system ends the process, by SIGALRM.
    assert code == (5 if threads else -14) and seconds < 20


def test_an_end_whose_output_is_not_read() -> None:
    # The pipe of standard error is full, and its reader has stopped.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 65536)
    os.set_blocking(writer, True)
    script = "import aiperf_mpi.ending as ending\nending._END_SECONDS = 1.0\nending.end_job(5, 'the cause')\n"
    env = {**os.environ, "PYTHONPATH": str(launch.ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, stderr=writer, timeout=30)
    os.close(reader), os.close(writer)
    assert done.returncode == 5


def test_a_clean_up_that_ends_its_thread_is_one_line() -> None:
    code, told, _ = ended("process.cleanups.append(lambda: sys.exit(3))\nend_job(5, 'the cause')\n")
    assert code == 5 and "clean-up: SystemExit: 3" in told and "the cause" in told


def test_what_is_made_after_the_clean_up_is_removed_by_its_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    process = ending.Process(rank=0, host="n")
    begun, left = threading.Event(), []

    def make() -> None:
        with process.making:
            begun.set()
            time.sleep(1.5)
            left.extend([] if process.cleaned else ["folder"])

    threading.Thread(target=make).start()
    begun.wait(10)
    process.clean()
    # The end has waited for the maker, and from now on no thread makes anything.
    assert process.cleaned and left == []
    late = threading.Thread(target=lambda: process.making.acquire(timeout=0.1) and left.append("late"))
    late.start()
    late.join(10)
    assert left == []


def test_a_wait_that_is_over_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread looks at a wait while the process leaves it."""
    ends: list[str] = []
    monkeypatch.setattr(ending, "process", ending.Process(rank=0, host="n"))
    monkeypatch.setattr(ending, "end_job", lambda code, text: ends.append(text))
    watch, old = ending.Watch(), ending.Wait(0.0, 0.0, 0.0, "waits", "do this", 2)
    watch._look(old)
    assert ends == [] and not ending.process.lock.locked()
    watch._wait = old
    watch._look(old)
    assert len(ends) == 1
