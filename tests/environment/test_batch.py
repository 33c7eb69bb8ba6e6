# SPDX-License-Identifier: Apache-2.0
"""When a job ends, by what squeue and qstat print: stand-ins for both, and a real Slurm."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from aiperf_mpi.environment import batch
from aiperf_mpi.environment.batch import asked_end, job_end, left_by_qstat, seconds
from tests.helpers import launch
from tests.helpers.slurm import slurm


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7:00", 420),
        ("59", 59),
        ("01:02:03\n", 3723),
        ("2-03:04:05", 2 * 86400 + 3 * 3600 + 4 * 60 + 5),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
        ("", None),
        ("-5:00", None),
    ],
)
def test_times_of_slurm(text: str, expected: int | None) -> None:
    assert seconds(text) == expected


def test_times_of_pbs() -> None:
    status = "Job Id: 7.n1\n    resources_used.walltime = 00:10:00\n    Resource_List.walltime = 01:30:00\n"
    assert left_by_qstat(status) == 4800
    assert left_by_qstat("    Resource_List.walltime = 01:30:00\n") == 5400
    assert left_by_qstat("qstat: Unknown Job Id 7.n1\n") is None


def tool(folder: Path, name: str, script: str) -> dict[str, str]:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_batch_system_is_asked(tmp_path: Path) -> None:
    environ = tool(tmp_path, "squeue", '[ "$*" = "-h -j 7 -o %L" ] && echo 10:00')
    assert job_end({**environ, "SLURM_JOB_ID": "7"}, now=1000) == 1600
    environ = tool(tmp_path, "qstat", '[ "$*" = "-f 8.n1" ] && echo "Resource_List.walltime = 0:20"')
    assert job_end({**environ, "PBS_JOBID": "8.n1"}, now=1000) == 1020
    assert job_end(environ) is None


@pytest.mark.parametrize("script", ["exit 1", "echo soon", "sleep 30", "exit 0", "kill -9 $$"])
def test_no_answer_is_not_an_error(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "ANSWER_SECONDS", 0.5)
    start = time.monotonic()
    assert job_end({**tool(tmp_path, "squeue", script), "SLURM_JOB_ID": "7"}) is None
    assert job_end({"PATH": "/nowhere", "SLURM_JOB_ID": "7"}) is None
    assert job_end({**os.environ, "SLURM_JOB_ID": "--version"}) is None
    assert time.monotonic() - start < 10


def test_it_is_asked_only_where_no_variable_tells_a_time_to_come(tmp_path: Path) -> None:
    environ = {**tool(tmp_path, "squeue", "echo 10:00"), "SLURM_JOB_ID": "7"}
    assert asked_end(environ) == pytest.approx(time.time() + 600, abs=5)
    assert asked_end({**environ, "SLURM_JOB_END_TIME": str(int(time.time()) - 5)}) is not None
    assert asked_end({**environ, "SLURM_JOB_END_TIME": str(int(time.time()) + 50)}) is None
    assert asked_end({**environ, "AIPERF_MPI_JOB_END": "soon"}) is None


@pytest.mark.mpi
def test_a_real_slurm_refuses_what_does_not_fit(tmp_path: Path) -> None:
    """Slurm 22.05 sets no SLURM_JOB_END_TIME; a job of two minutes has no room for 600 s."""
    script = tmp_path / "job"
    python, own = launch.python("mpich"), launch.launcher("mpich")
    words = f"-m aiperf_mpi --preset demo --time-limit 600 --output {tmp_path}/run"
    script.write_text(f"#!/bin/bash\nunset SLURM_JOB_END_TIME\n{own} -n 2 {python} {words}\n")
    with slurm() as cluster:
        code, output = cluster.batch(script, ["-t", "2", "-n", "2"], timeout=90)
    assert code == 2, output
    assert "--time-limit 600 s" in output and "do not fit" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "level"),
    [
        ("echo RUNNING", ""),
        ("exit 0", "fail"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "fail"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", ""),
    ],
)
def test_the_variable_of_a_job_that_has_ended(script: str, level: str, tmp_path: Path) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    squeue.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    found = batch.judge_job({"SLURM_JOB_ID": "4711", "PATH": path})
    assert [one.level for one in found] == [level] * bool(level)
    assert batch.judge_job({"PATH": path}) == () == batch.judge_job({"SLURM_JOB_ID": "1", "PATH": "/none"})
