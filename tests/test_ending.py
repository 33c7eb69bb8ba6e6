# SPDX-License-Identifier: Apache-2.0
"""How a process ends its job: what is said of an error, the launcher's end, and the files of MPI."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aiperf_mpi import ending
from aiperf_mpi.config import ConfigError
from aiperf_mpi.launchers import abort_by_launcher, rank_of
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


def test_only_files_of_mpi_are_removed(tmp_path: Path) -> None:
    names = ("mpich_shm_1_0", "sm_segment.h.0", "dataset.bin", "osc_rdma.h")
    for name in names:
        (tmp_path / name).touch()
    maps = tmp_path / "maps"
    start = "7f00-7f01 rw-s 00000000 00:19 42        "
    maps.write_text("".join(f"{start}{tmp_path / name}\n" for name in names[:3]) + "7f02-7f03 r--p 0 0 0\n")
    ending.remove_segments(str(maps), f"{tmp_path}/")
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
