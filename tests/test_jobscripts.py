# SPDX-License-Identifier: Apache-2.0
"""The scripts that people run: job scripts in the environment of Slurm and PBS, and the shell's checks."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import launch
from tests.helpers.end_to_end.runs import QUICK_COMPILER

ROOT = launch.ROOT
SLURM, PBS = ROOT / "jobscripts" / "aiperf_mpi.slurm", ROOT / "jobscripts" / "aiperf_mpi.pbs"
SCRIPTS = sorted([*(ROOT / "bin").iterdir(), *(ROOT / "jobscripts").iterdir(), ROOT / ".ci" / "run"])

#: Seconds that a run of the demo may take in addition to its core time, on a loaded machine.
AROUND = 150

#: Replaces srun on a machine without Slurm: MPICH's launcher starts its proxy with it. Options come
#: first, then the command with its path; the proxy asks for the number of its node.
SRUN = """#!/usr/bin/env bash
while [ "${1#/}" = "$1" ]; do shift; done
export SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
exec "$@"
"""


# -- how they are written --------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_finds_no_fault(script: Path) -> None:
    assert os.access(script, os.X_OK) or script.parent.name == "jobscripts"
    subprocess.run(["bash", "-n", script], check=True, timeout=30)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is missing: bin/setup-environment test installs it"
    done = subprocess.run([shellcheck, "-s", "bash", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_only_old_files_without_a_process_are_removed_from_shared_memory(tmp_path: Path) -> None:
    """Other jobs of the user may be on the node: what they have mapped, or have just made, stays."""
    (command,) = re.findall(r"bash -c '(.*?)'", SLURM.read_text(), re.DOTALL)
    names = ["mpich_shm_1_0", "mpich_shm_2_0", "mpich_shm_3_0", "other"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(4096))
        if name != "mpich_shm_3_0":
            os.utime(tmp_path / name, (time.time() - 60,) * 2)
    with (
        (tmp_path / "mpich_shm_2_0").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ),
    ):
        script = command.replace("/dev/shm", str(tmp_path))
        subprocess.run(["bash", "-c", script], check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[1:]


def directives(script: Path, mark: str) -> list[str]:
    """Return the batch system's lines; all of them must come before the first command."""
    lines = script.read_text().splitlines()
    options = [line.removeprefix(mark).strip() for line in lines if line.startswith(mark)]
    commands = [number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    assert options and all(number < commands[0] for number, line in enumerate(lines) if line.startswith(mark))
    return options


def seconds(clock: str) -> int:
    hours, minutes, rest = (int(part) for part in clock.split(":"))
    return 3600 * hours + 60 * minutes + rest


def variable(script: Path, name: str) -> int:
    return int(re.findall(rf"^{name}=(\d+)$", script.read_text(), re.MULTILINE)[0])


def test_slurm_directives() -> None:
    lines = directives(SLURM, "#SBATCH")
    assert "--exclusive" in lines
    given = dict(line.removeprefix("--").split("=") for line in lines if "=" in line)
    assert {
        "nodes",
        "ntasks-per-node",
        "cpus-per-task",
        "gpus-per-node",
        "mem",
        "time",
        "output",
        "job-name",
    } <= set(given)
    assert given["signal"] == "B:USR1@120"
    assert seconds(given["time"]) >= variable(SLURM, "time_limit") + 120 + 300


def test_pbs_directives_agree_with_the_script() -> None:
    text = " ".join(directives(PBS, "#PBS"))
    nodes, ranks = (int(number) for number in re.findall(r"select=(\d+):.*mpiprocs=(\d+)", text)[0])
    assert nodes * ranks == variable(PBS, "ranks")
    walltime = seconds(re.findall(r"walltime=(\S+)", text)[0])
    assert walltime == variable(PBS, "walltime") >= variable(PBS, "time_limit") + 120 + 300


# -- what they do ----------------------------------------------------------------------------------


class Job:
    """A job script, started as by the batch system: with its variables, in the folder of submission."""

    def __init__(self, script: Path, folder: Path, variables: dict[str, str], time_limit: float) -> None:
        tools = folder / "tools"
        tools.mkdir()
        (tools / "srun").write_text(SRUN)
        (tools / "srun").chmod(0o755)
        # A network of seven units, so that even a loaded machine soon reaches its first step.
        arguments = (
            f"--time-limit {time_limit} --set run.tick=2 --set train.round_epochs=[1,1] --set "
            f"model.blocks=[1,1] "
            "--set data.image_size=16"
        )
        env = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "AIPERF_MPI_ENVIRONMENT": str(launch.python("mpich").parent.parent),
            "AIPERF_MPI_PRESET": "demo",
            "AIPERF_MPI_ARGUMENTS": arguments,
            **variables,
        }
        self.folder = folder
        self.process = subprocess.Popen(
            ["bash", script],
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes of the job with its test."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait_for_core(self, name: str) -> None:
        """Wait until the result is open, when the core time starts."""
        end = time.monotonic() + AROUND
        while not (self.folder / "runs" / name / "result.partial.h5").exists():
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"no core time; exit code {self.process.poll()}: {self.finish()}")
            time.sleep(0.2)

    def finish(self) -> str:
        """Wait for the end of the job, and return its output."""
        return self.process.communicate(timeout=AROUND)[0]


def drains(job: Job, name: str, sent: signal.Signals) -> str:
    """Signal a job in its core time, check that it drains within 30 s with exit code 4; return its output."""
    job.wait_for_core(name)
    start = time.monotonic()
    job.process.send_signal(sent)
    output = job.finish()
    assert job.process.returncode == 4, output
    assert time.monotonic() - start < 30
    assert "AIPERF_MPI end: drained" in output
    return output


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return the variables that Slurm 22.05 sets in a batch script of 4 ranks on one node."""
    host = socket.gethostname()
    yield {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOBID": "4711",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_NTASKS": "4",
        "SLURM_NPROCS": "4",
        "SLURM_NNODES": "1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NODELIST": host,
        "SLURM_JOB_NODELIST": host,
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_TASKS_PER_NODE": "4",
        "SLURM_JOB_CPUS_PER_NODE": "8",
        "SLURM_JOB_END_TIME": str(int(time.time()) + 5400),
    }


@pytest.fixture
def pbs(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return the variables that PBS sets in a job of 4 ranks on one node."""
    nodes = tmp_path / "nodefile"
    nodes.write_text(f"{socket.gethostname()}\n" * 4)
    yield {
        "PBS_JOBID": "4711.server",
        "PBS_O_WORKDIR": str(tmp_path),
        "PBS_NODEFILE": str(nodes),
        "PBS_ENVIRONMENT": "PBS_BATCH",
    }


@pytest.mark.mpi
def test_slurm_job_runs_to_its_verdict(tmp_path: Path, slurm: dict[str, str]) -> None:
    with Job(SLURM, tmp_path, slurm | QUICK_COMPILER, time_limit=20) as job:
        output = job.finish()
    assert job.process.returncode == 0, output
    assert "AIPERF_MPI status: VALID" in output and "AIPERF_MPI ranks: 4" in output
    assert (tmp_path / "runs" / "slurm-4711" / "result.h5").is_file()


@pytest.mark.mpi
def test_slurm_job_drains_on_the_signal_before_its_end(tmp_path: Path, slurm: dict[str, str]) -> None:
    """Slurm sends USR1 only to the batch shell (--signal=B:USR1@120); exit code 4 means drained."""
    with Job(SLURM, tmp_path, slurm, time_limit=600) as job:
        drains(job, "slurm-4711", signal.SIGUSR1)
    assert (tmp_path / "runs" / "slurm-4711" / "result.h5").is_file()


@pytest.mark.mpi
def test_a_job_that_is_too_short_is_refused(tmp_path: Path, slurm: dict[str, str]) -> None:
    slurm["SLURM_JOB_END_TIME"] = str(int(time.time()) + 300)
    with Job(SLURM, tmp_path, slurm, time_limit=600) as job:
        output = job.finish()
    assert job.process.returncode == 2, output
    assert "--time-limit 600 s" in output and "do not fit" in output
    assert not (tmp_path / "runs" / "slurm-4711" / "result.h5").exists()


@pytest.mark.mpi
def test_a_deleted_pbs_job_drains_on_all_its_nodes(tmp_path: Path, pbs: dict[str, str]) -> None:
    """qdel sends TERM to the job's shell, which passes it on as USR1."""
    with Job(PBS, tmp_path, pbs, time_limit=600) as job:
        output = drains(job, "pbs-4711.server", signal.SIGTERM)
    assert "AIPERF_MPI ranks: 4" in output


@pytest.mark.mpi
@pytest.mark.full
def test_pbs_job_runs_to_its_verdict(tmp_path: Path, pbs: dict[str, str]) -> None:
    with Job(PBS, tmp_path, pbs | QUICK_COMPILER, time_limit=30) as job:
        output = job.finish()
    assert job.process.returncode == 0, output
    assert "AIPERF_MPI status: VALID" in output
    assert (tmp_path / "runs" / "pbs-4711.server" / "result.h5").is_file()
