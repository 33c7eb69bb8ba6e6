# SPDX-License-Identifier: Apache-2.0
"""The shipped job script in a real Slurm on this host: cores of each rank, exit codes, a second start."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import launch
from tests.helpers.slurm import Slurm, slurm

SCRIPT = launch.ROOT / "jobscripts" / "aiperf_mpi.slurm"
PROGRAM = launch.ROOT / "tests" / "programs" / "parallel" / "launch" / "show_rank.py"

#: Options in place of the script's own: one node with two cores, without accelerators.
TWO_CORES = ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0", "--time=5")

#: Two ranks that may use the two cores of the node.
ALL_CORES = [[0, 1], [0, 1]]

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    """Run a Slurm that binds tasks to cores, as many sites have it."""
    with slurm(task_plugin="task/affinity") as running:
        yield running


def environment(folder: Path, mpi: str, *, mpiexec: bool = True, program: Path | None = PROGRAM) -> Path:
    """Make an environment whose Python runs `program` in place of aiperf_mpi; without its own mpiexec, the
    script takes srun."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    command = f'exec {launch.python(mpi)} {program} "$@"' if program else f'exec {launch.python(mpi)} "$@"'
    tools = {"python": command} | ({"mpiexec": f'exec {launch.launcher(mpi)} "$@"'} if mpiexec else {})
    for name, line in tools.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    if mpi == "mpich":
        (folder / "lib" / "libmpi.so.12").touch()
    return folder


def variables(mpi: str, folder: Path, **more: str) -> dict[str, str]:
    own = launch.OPENMPI_VARIABLES if mpi == "openmpi" else {}
    return {**own, "AIPERF_MPI_ENVIRONMENT": str(folder), **more}


def rows(output: str) -> list[dict[str, Any]]:
    """Return the lines of the ranks; ranks may write into one line."""
    return sorted(map(json.loads, re.findall(r"\{.*?\}", output)), key=lambda row: row["rank"])


@pytest.mark.parametrize(
    ("mpi", "mpiexec", "expected"),
    [
        pytest.param("mpich", True, ALL_CORES, marks=pytest.mark.full),
        pytest.param("openmpi", True, ALL_CORES, marks=pytest.mark.full),
        ("mpich", False, ALL_CORES),
    ],
    ids=["mpich's mpiexec", "open mpi's mpiexec", "srun"],
)
def test_ranks_may_use_all_cores_of_the_job(
    cluster: Slurm, tmp_path: Path, mpi: str, mpiexec: bool, expected: list[list[int]]
) -> None:
    if not launch.available(mpi):
        pytest.skip(f"{mpi} is not installed")
    folder = environment(tmp_path / "env", mpi, mpiexec=mpiexec)
    code, output = cluster.batch(SCRIPT, TWO_CORES, env=variables(mpi, folder), cwd=tmp_path, timeout=60)
    assert code == 0, output
    assert [row["cpus"] for row in rows(output)] == expected, output
    assert [row["size"] for row in rows(output)] == [2, 2]


@pytest.mark.parametrize("mpiexec", [True, False], ids=["mpiexec", "srun"])
def test_the_exit_code_that_all_ranks_agree_on_is_the_jobs(
    cluster: Slurm, tmp_path: Path, mpiexec: bool
) -> None:
    """srun --kill-on-bad-exit=1 would end rank 1, which leaves 0.3 s after rank 0, and give 143."""
    folder = environment(tmp_path / "env", "mpich", mpiexec=mpiexec)
    code, output = cluster.batch(
        SCRIPT, TWO_CORES, env=variables("mpich", folder, EXIT="4"), cwd=tmp_path, timeout=60
    )
    assert code == 4, output


@pytest.mark.full
def test_the_ranks_of_a_killed_rank_end(cluster: Slurm, tmp_path: Path) -> None:
    """Without --wait, srun lets them wait until the job's time limit. 25 s, and 10 s of machine slack."""
    folder, start = environment(tmp_path / "env", "mpich", mpiexec=False), time.monotonic()
    code, output = cluster.batch(
        SCRIPT, TWO_CORES, env=variables("mpich", folder, DIE="1"), cwd=tmp_path, timeout=60
    )
    assert code != 0 and time.monotonic() - start < 45, output


@pytest.mark.full
@pytest.mark.parametrize("mpiexec", [True, False], ids=["mpiexec", "srun"])
def test_a_job_that_starts_again_gets_a_new_folder(cluster: Slurm, tmp_path: Path, mpiexec: bool) -> None:
    """The first start is killed, and leaves its folder and MPICH's shared memory, named by job and step."""
    folder = environment(tmp_path / "env", "mpich", mpiexec=mpiexec)
    log = tmp_path / "log"
    options = [*TWO_CORES, "--requeue", "--open-mode=append", f"--output={log}", "--parsable"]
    job = cluster.call(
        ["sbatch", *options, SCRIPT], env=variables("mpich", folder, WAIT="4"), cwd=tmp_path, timeout=20
    ).stdout.strip()
    wait_for(lambda: log.exists() and len(rows(log.read_text())) == 2, 40)
    (tmp_path / "runs" / f"slurm-{job}").mkdir(parents=True)
    cluster.call(["scontrol", "requeue", job], timeout=20)
    wait_for(lambda: started_at_once(cluster, job) and len(rows(log.read_text())) == 4, 170, log.read_text)

    # The output is the argument after --output.
    outputs = [row["argv"][row["argv"].index("--output") + 1] for row in rows(log.read_text())]
    assert sorted(set(outputs)) == [f"runs/slurm-{job}", f"runs/slurm-{job}-restart-1"], log.read_text()
    cluster.call(["scancel", job], timeout=20)


def started_at_once(cluster: Slurm, job: str) -> bool:
    """Lift the two minutes for which Slurm holds a job that it starts again."""
    if cluster.call(["squeue", "-h", "-j", job, "-o", "%T"], timeout=20).stdout.strip() == "PENDING":
        cluster.call(["scontrol", "update", f"JobId={job}", "StartTime=now"], timeout=20)
        time.sleep(2)
    return True


def wait_for(condition: Any, seconds: float, show: Any = str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing has come in time: {show()}"
        time.sleep(0.2)
