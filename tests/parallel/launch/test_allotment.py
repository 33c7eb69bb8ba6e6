# SPDX-License-Identifier: Apache-2.0
"""What real ranks may use: under both launchers, bound, in a control group, under a limit of the process."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest

from aiperf_mpi.parallel.launch.launcher import Launcher, more_cores
from tests.helpers import launch
from tests.helpers.end_to_end import runs

PROGRAM = launch.ROOT / "tests" / "programs" / "parallel" / "launch" / "show_resources.py"
MPIS = ["mpich", "openmpi"]

needs_two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) != 2,
    reason="the expected numbers are those of two cores",
)


def warned(
    ranks: int, *sets: str, mpi: str = "mpich", options: tuple[str, ...] = (), before: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Run the program and return what rank 0 was told; `before` is put before the launcher."""
    if not launch.available(mpi):
        pytest.skip(f"{mpi} is not installed")
    done = started(ranks, *sets, mpi=mpi, options=options, before=before)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def started(
    ranks: int, *sets: str, mpi: str = "mpich", options: tuple[str, ...] = (), before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*before, launch.launcher(mpi), *options, "-n", str(ranks), launch.python(mpi), PROGRAM, *sets]
    job = subprocess.Popen(
        [str(part) for part in command],
        env=launch.variables(mpi),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return launch.finish(job, 60)


@needs_two_cores
@pytest.mark.mpi
def test_open_mpi_binds_two_ranks_to_a_core_each() -> None:
    """The demo's trainer has one thread that prepares images, and the step."""
    (one,) = warned(2, mpi="openmpi", options=("--bind-to", "core"))
    assert one["subject"] == "affinity" and "rank 1 on" in one["text"] and "1 of 2 cores" in one["text"]
    assert "--bind-to none" in one["remedy"]
    assert warned(2, mpi="openmpi", options=("--bind-to", "none")) == []


@needs_two_cores
@pytest.mark.mpi
@pytest.mark.parametrize("mpi", MPIS)
def test_a_shell_on_one_core(mpi: str) -> None:
    options = ("--bind-to", "none") if mpi == "openmpi" else ()
    (one,) = warned(3, mpi=mpi, options=options, before=("taskset", "-c", "1"))
    assert "ranks 0-2 on" in one["text"] and "share core 1" in one["text"] and "taskset" in one["remedy"]


@needs_two_cores
@pytest.mark.mpi
def test_mpich_leaves_the_cores_to_the_ranks() -> None:
    assert warned(4, mpi="mpich") == []


@pytest.fixture
def group() -> Iterator[Path]:
    """Make a control group with a limit of 600 MiB, and one in it."""
    outer = Path(f"/sys/fs/cgroup/memory/aiperf_mpi-ranks-{os.getpid()}")
    try:
        (outer / "job").mkdir(parents=True)
        (outer / "memory.limit_in_bytes").write_text(str(600 * 2**20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield outer
    (outer / "job").rmdir()
    outer.rmdir()


#: Made-up images with labels of 1 GiB: 2^28 of 4 bytes.
GIBIBYTE = ("data.name=synthetic", "data.image_size=32", "data.channels=1", "data.train_images=268435456")


@pytest.mark.mpi
@pytest.mark.parametrize("mpi", MPIS)
def test_a_set_that_does_not_fit_into_the_control_group(group: Path, mpi: str) -> None:
    """The limit is one level above the group of the ranks; killed without a word, if it were not seen."""
    if not launch.available(mpi):
        pytest.skip(f"{mpi} is not installed")
    enter = ("bash", "-c", f'echo $$ > {group}/job/cgroup.procs && exec "$@"', "bash")
    done = started(2, *GIBIBYTE, mpi=mpi, before=enter)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("aiperf_mpi")]
    assert len(lines) == 1 and f"{group} leaves" in lines[0] and "of 600 MiB" in lines[0], done.stderr
    assert "ranks 0-1 on" in lines[0] and "--mem=0" in lines[0]


@pytest.mark.mpi
def test_a_limit_on_the_address_space() -> None:
    """JAX does not start under 1.3 GB; a trainer that tried would wait for ever for memory."""
    done = started(3, before=("bash", "-c", 'ulimit -v 1000000; exec "$@"', "bash"))
    assert done.returncode == 2, done.stderr
    assert "ulimit -v is 977 MiB" in done.stderr and "ulimit -v unlimited" in done.stderr


@needs_two_cores
@pytest.mark.mpi
@pytest.mark.full
def test_a_run_says_it_before_the_core_time_and_keeps_it(tmp_path: Path) -> None:
    words = runs.arguments(tmp_path / "run", seconds=8)
    done = launch.mpirun(2, words, env=runs.QUICK_COMPILER, launcher_arguments=("-bind-to", "user:0,0"))
    log = done.stderr
    assert log.index("share core 0") < log.index("core time starts")
    with h5py.File(tmp_path / "run" / "result.h5") as file:
        inventory = json.loads(file["system/inventory_json"][()])
    assert "share core 0" in inventory["findings"][0]["text"]


@pytest.mark.parametrize(
    ("name", "environ", "words"),
    [
        ("srun", {"SLURM_JOB_ID": "1"}, "srun --cpus-per-task=4"),
        ("mpiexec (PMI)", {"SLURM_JOB_ID": "1"}, "SLURM_CPU_BIND=none"),
        ("mpiexec (PMI)", {}, "mpiexec -bind-to none"),
        ("Open MPI's mpirun", {}, "--map-by slot:PE=4"),
        ("Open MPI's mpirun", {"SLURM_JOB_ID": "1"}, "SLURM_CPU_BIND=none"),
        ("MVAPICH's mpirun", {}, "MV2_ENABLE_AFFINITY=0"),
        ("PALS (mpiexec)", {}, "--depth=4"),
        ("none", {}, "bind no rank"),
    ],
)
def test_the_option_is_that_of_the_launcher(name: str, environ: dict[str, str], words: str) -> None:
    assert words in more_cores(Launcher(name), "MPICH", environ)(4)
