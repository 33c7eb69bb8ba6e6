# SPDX-License-Identifier: Apache-2.0
"""The launcher, size and rank from each launcher's environment, before MPI starts."""

from __future__ import annotations

import itertools
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from aiperf_mpi.parallel.launch import launcher
from aiperf_mpi.parallel.launch.launcher import (
    Launcher,
    LaunchError,
    check_library,
    check_size,
    detect,
    how_to_launch,
)
from aiperf_mpi.planning import shared_memory

#: The variables that each launcher sets, from real environments, shortened.
HYDRA = {"PMI_SIZE": "4", "PMI_RANK": "2", "PMI_FD": "9", "HYDI_CONTROL_FD": "7", "MPI_LOCALRANKID": "2"}
PRTERUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"}
BATCH = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
STEP = BATCH | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}
SRUN_PMI2 = STEP | {"PMI_SIZE": "8", "PMI_RANK": "5", "PMI_FD": "11"}


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [
        ({}, Launcher("none")),
        (HYDRA, Launcher("mpiexec (PMI)", 4, 2)),
        (PRTERUN, Launcher("Open MPI's mpirun", 4, 1)),
        (SRUN_PMI2, Launcher("srun", 8, 5)),
        (STEP, Launcher("srun", 8, 5)),
        (STEP | {"PMIX_RANK": "5"}, Launcher("srun", 8, 5)),
        # A process that mpiexec starts in an allocation inherits the batch system's variables.
        (STEP | HYDRA, Launcher("mpiexec (PMI)", 4, 2)),
        (STEP | PRTERUN, Launcher("Open MPI's mpirun", 4, 1)),
        # One process in a batch script, without a launcher: no variable gives a number of ranks.
        (BATCH, Launcher("none")),
        ({"PMIX_RANK": "3"}, Launcher("a PMIx launcher", None, 3)),
        ({"PMI_SIZE": "many"}, Launcher("none")),
    ],
)
def test_detect(environ: dict[str, str], launcher: Launcher) -> None:
    assert detect(environ) == launcher


def test_one_process_prints() -> None:
    assert [detect(HYDRA | {"PMI_RANK": str(rank)}).speaks for rank in range(3)] == [True, False, False]
    assert detect({}).speaks


@pytest.mark.parametrize(
    ("environ", "library", "refused"),
    [
        (HYDRA, "MPICH", False),
        (HYDRA, "Open MPI", True),
        (PRTERUN, "Open MPI", False),
        (PRTERUN, "MPICH", True),
        # MPICH can be built for PMIx; its users set this variable.
        (PRTERUN | {"MPIR_CVAR_PMI_VERSION": "x"}, "MPICH", False),
        (SRUN_PMI2, "MPICH", False),
        (SRUN_PMI2, "Open MPI", False),
        # MPICH aborts in its initialisation even with one rank.
        (PRTERUN | {"OMPI_COMM_WORLD_SIZE": "1"}, "MPICH", True),
        ({}, "MPICH", False),
    ],
)
def test_libraries_that_cannot_start_under_a_launcher(
    environ: dict[str, str], library: str, refused: bool
) -> None:
    launcher = detect(environ)
    if refused:
        with pytest.raises(LaunchError, match="do not belong together"):
            check_library(launcher, library, environ)
    else:
        check_library(launcher, library, environ)


@pytest.mark.parametrize(
    ("environ", "size", "words"),
    [
        (HYDRA, 4, None),
        (HYDRA, 1, "started 4 ranks, but to MPI each of them is alone"),
        (HYDRA, 2, "started 4 ranks, but MPI .* sees 2"),
        (STEP, 1, "srun started 8 ranks"),
        (STEP, 8, None),
        (BATCH, 1, "needs at least 2"),
        ({}, 1, "needs at least 2"),
        ({}, 2, None),
        ({"PMIX_RANK": "0"}, 6, None),
    ],
)
def test_sizes(environ: dict[str, str], size: int, words: str | None) -> None:
    if words is None:
        check_size(detect(environ), "MPICH", size)
    else:
        with pytest.raises(LaunchError, match=words):
            check_size(detect(environ), "MPICH", size)


def test_the_command_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(sys, "executable", "python")
    assert (
        how_to_launch("MPICH", environ={"SLURM_JOB_ID": "1"}) == "srun --mpi=pmi2 -n N python -m aiperf_mpi"
    )
    assert "python -m aiperf_mpi" in how_to_launch("Open MPI", Launcher("srun", 8, 0), {"SLURM_JOB_ID": "1"})
    # It has the options of the run, as a shell reads them, and doctor's own are left out.
    monkeypatch.setattr(sys, "executable", "/a b/python")
    monkeypatch.setattr(sys, "argv", ["x", "doctor", "--json", "--output", "my run"])
    typed = how_to_launch("MPICH", environ={"SLURM_JOB_ID": "1"})
    assert typed == "srun --mpi=pmi2 -n N '/a b/python' -m aiperf_mpi --output 'my run'"
    monkeypatch.setattr(sys, "argv", ["x", *["--set", "train.lr=0.1"] * 100])
    assert len(how_to_launch("MPICH")) < 300
    assert " -n 8 " in how_to_launch("Open MPI", Launcher("srun", 8, 0), {"SLURM_JOB_ID": "1"})


def test_mpiexec_that_starts_its_process_by_srun_is_mpiexec() -> None:
    """The variables that a rank has there (MPICH 5.0.2 under Slurm 22.05), and those under srun itself."""
    both = {"SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "0", "PMI_FD": "5", "PMI_SIZE": "2"}
    assert detect({**both, "PMI_HOSTNAME": "n1", "MPI_LOCALRANKID": "0"}).name == "mpiexec (PMI)"
    assert detect({**both, "PMI_JOBID": "7.1"}).name == "srun"


@pytest.mark.parametrize(
    ("age", "owner", "refused"), [(0, 0, False), (86400 * 365, 0, True), (0, 1, True)], ids=str
)
def test_files_of_other_jobs_are_no_free_memory(
    age: float, owner: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 512 blocks of 4 KiB are 2 MiB, of which 2 ranks need 3; there are 8 MiB of another rank, job or user.
    file = tmp_path / "mpich_shm_1_0"
    file.write_bytes(b"x" * 2**23)
    os.utime(file, (time.time() - age, time.time() - age))
    room = os.statvfs_result((4096, 4096, 4096, 512, 512, 10, 10, 10, 0, 255))
    monkeypatch.setattr("os.statvfs", lambda folder: room)
    user = os.geteuid() + owner
    monkeypatch.setattr("os.geteuid", lambda: user)
    launcher.check_room(1, str(tmp_path))
    words = "has 2 MiB free, but MPICH takes 3 MiB for 2 ranks"
    with pytest.raises(LaunchError, match=words) if refused else nullcontext():
        launcher.check_room(2, str(tmp_path))


def test_a_process_began_after_its_parent_and_before_now() -> None:
    # The kernel tells it in ticks, and each call reads two clocks: a child of the same tick may seem older.
    tick = 1 / os.sysconf("SC_CLK_TCK")
    begun = [launcher._begun(pid) for pid in (1, os.getppid(), os.getpid())]
    assert all(parent < child + tick for parent, child in itertools.pairwise([*begun, time.time()])), begun
    assert launcher._begun(2**30) == float("inf")


def test_variables_of_another_job_are_named() -> None:
    # Typing the command again does not help where a login shell has them: mpiexec passes them on.
    left = {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "3", "PMIX_RANK": "3"}
    for environ in (left, {**HYDRA, **left}):
        with pytest.raises(LaunchError) as raised:
            check_library(detect(environ), "MPICH", environ)
        assert "unset OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK PMIX_RANK" in str(raised.value)


def test_a_preloaded_library_is_named() -> None:
    environ = {**HYDRA, "LD_PRELOAD": "/opt/mpi/lib/libmpi.so.40"}
    with pytest.raises(
        LaunchError, match=r"LD_PRELOAD=/opt/mpi/lib/libmpi.so.40 loads an MPI library: unset"
    ):
        check_library(detect(environ), "Open MPI", environ)


def test_shared_memory_that_is_missing_or_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = tmp_path / "shm"
    launcher.check_room(1, str(lacking))
    with pytest.raises(LaunchError, match=f"there is no {lacking}.*; mount it: mkdir -p {lacking} && mount"):
        launcher.check_room(2, str(lacking))
    room = os.statvfs_result((4096, 4096, 2**20, 2**20, 2**20, 10, 10, 10, os.ST_RDONLY, 255))
    monkeypatch.setattr("os.statvfs", lambda folder: room)
    with pytest.raises(LaunchError, match="is mounted read-only.*remount,rw"):
        launcher.check_room(2, str(tmp_path))
    assert shared_memory.judge(1, str(tmp_path)).text.endswith("is mounted read-only")
    assert "mode=1777" in shared_memory.judge(1, str(lacking)).remedy
