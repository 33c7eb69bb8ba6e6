# SPDX-License-Identifier: Apache-2.0
"""The inventory of a run: true, complete, and without secrets."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from aiperf_mpi import __version__
from aiperf_mpi.machine.inventory import environment, inventory, packages, vector_bits
from aiperf_mpi.machine.limits import available_bytes


def test_it_is_json_and_nothing_is_blank() -> None:
    described = inventory()
    assert json.loads(json.dumps(described)) == described
    for key in ("hostname", "platform", "kernel", "python", "executable"):
        assert described[key], key
    assert described["memory_bytes"] == psutil.virtual_memory().total
    assert described["cpu"]["model"] and 1 <= described["cpu"]["usable"] <= described["cpu"]["threads"]


def test_versions_are_those_installed() -> None:
    versions = packages()
    assert versions["aiperf_mpi"] == __version__
    for name in ("jax", "mpi4py", "h5py", "numpy"):
        assert versions[name] == metadata.version(name)


def test_secrets_stay_out_and_settings_of_launchers_come_in() -> None:
    given = {
        "SLURM_JOB_ID": "7",
        "SLURM_JWT": "x",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--a",
        "OMP_NUM_THREADS": "2",
        "LD_LIBRARY_PATH": "/lib",
        "CUDA_API_KEY": "x",
        "NCCL_TOKEN": "x",
        "HOME": "/root",
        "AWS_SECRET_ACCESS_KEY": "x",
        "OMPI_COMM_WORLD_SIZE": "4",
    }
    kept = {
        "SLURM_JOB_ID",
        "JAX_PLATFORMS",
        "XLA_FLAGS",
        "OMP_NUM_THREADS",
        "LD_LIBRARY_PATH",
        "OMPI_COMM_WORLD_SIZE",
    }
    assert set(environment(given)) == kept


def test_available_memory_is_real() -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total
    assert os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("cpuinfo", "bits"),
    [
        ("flags\t\t: fpu sse2 avx avx2 fma avx512f\n", 512),
        ("flags\t\t: fpu sse2 avx avx2 fma\n", 256),
        ("flags\t\t: fpu sse2\n", 128),
        ("Features\t: fp asimd\n", 128),
        ("Features\t: fp asimd sve\n", 512),
        ("cpu\t\t: POWER9\n", 0),
    ],
)
def test_vectors_are_as_wide_as_the_processor_announces(cpuinfo: str, bits: int, tmp_path: Path) -> None:
    (tmp_path / "proc/sys/abi").mkdir(parents=True)
    (tmp_path / "proc/sys/abi/sve_default_vector_length").write_text("64\n")
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}")
    assert vector_bits(tmp_path) == bits
