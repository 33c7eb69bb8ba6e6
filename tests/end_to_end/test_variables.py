# SPDX-License-Identifier: Apache-2.0
"""Runs under variables of JAX, CUDA and the batch system: refused in a line, or said before the core time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.helpers import launch
from tests.helpers.end_to_end import runs

pytestmark = pytest.mark.mpi

#: Trainers that take what JAX finds, and not made-up devices of the CPU.
REAL = ("parallel.host_devices=0",)

#: A variable, and words of the only line.
REFUSED = {
    "cuda": ({"JAX_PLATFORMS": "cuda"}, ["rank 1 on host", "JAX_PLATFORMS=cuda", "unset JAX_PLATFORMS"]),
    "rocm": ({"JAX_PLATFORMS": "rocm"}, ["rank 1 on host", "JAX_PLATFORMS=rocm", "rocm"]),
    "tpu": ({"JAX_PLATFORMS": "tpu"}, ["rank 1 on host", "JAX_PLATFORMS=tpu"]),
    "nonsense": ({"JAX_PLATFORMS": "nonsense"}, ["rank 1 on host", "JAX_PLATFORMS=nonsense"]),
    "truth": ({"JAX_ENABLE_X64": "maybe"}, ["rank 1 on host", "JAX_ENABLE_X64=maybe", "correct or unset"]),
    "flag": ({"XLA_FLAGS": "--xla_nonsense=1"}, ["rank 1 on host", "--xla_nonsense", "remove it"]),
    "flags' file": ({"XLA_FLAGS": "/nowhere/flags"}, ["rank 1 on host", "XLA_FLAGS=/nowhere/flags"]),
    "stale end": ({"SLURM_JOB_END_TIME": "1700000000"}, ["SLURM_JOB_END_TIME: 1700000000 is", "unset"]),
    "no end": ({"AIPERF_MPI_JOB_END": "nan"}, ["AIPERF_MPI_JOB_END: 'nan'", "date +%s"]),
    "no driver": (
        {"CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_GPUS": "0"},
        ["rank 1 on host", "the kernel shows no accelerator", "load the driver"],
    ),
}

SAMPLE = ("cuda", "flag", "stale end")


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in SAMPLE else pytest.mark.full) for one in REFUSED]
)
def test_what_cannot_run_is_told_in_a_line(name: str, mpi: str, tmp_path: Path) -> None:
    if not launch.available(mpi):
        pytest.skip(f"{mpi} is not installed")
    if name == "no driver" and any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this host has an accelerator")
    environ, words = REFUSED[name]
    start = time.monotonic()
    done = launch.mpirun(2, runs.arguments(tmp_path / "run", REAL), mpi=mpi, env=environ, timeout=90)
    lines = [line for line in done.stderr.splitlines() if "aiperf_mpi" in line and "warning" not in line]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr
    assert time.monotonic() - start < 30
    assert not (tmp_path / "run").exists()


@pytest.mark.full
@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ""),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ""),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "of its 2 devices 0 can be used"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, "makes 8 devices of the"),
        ({"AIPERF_MPI_JOBEND": "5"}, "did you mean AIPERF_MPI_JOB_END?"),
    ],
    ids=str,
)
def test_what_runs_all_the_same_is_said_before(environ: dict[str, str], words: str, tmp_path: Path) -> None:
    sets = (*REAL, "train.batch_per_device=16", "hpo.batches=[16]")
    words_of_run = runs.arguments(tmp_path / "run", sets, seconds=8)
    done = launch.mpirun(2, words_of_run, env=runs.QUICK_COMPILER | environ, timeout=120)
    before, core, _ = done.stderr.partition("core time starts")
    assert core and "install the extra" not in done.stderr, done.stderr
    assert (words in before) if words else ("accelerators" not in before), before
