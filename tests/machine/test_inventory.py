# SPDX-License-Identifier: Apache-2.0
"""The inventory of a run: true, complete, and without secrets."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

from aiperf_mpi import __version__
from aiperf_mpi.machine.inventory import environment, inventory, packages, source
from aiperf_mpi.machine.memory import available_bytes


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


def test_the_commit_and_whether_the_source_differs(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert source(tmp_path) == {"commit": "", "dirty": None}
    git("init", "-q")
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text("1\n")
    git("add", "package")
    git("commit", "-q", "-m", "first")
    assert source(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "module.py").write_text("2\n")
    assert source(package)["dirty"] is True

    # A package inside a checkout that does not belong to it has no commit.
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("")
    assert source(tmp_path / "site-packages") == {"commit": "", "dirty": None}


def test_available_memory_is_real() -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total
    assert os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") == psutil.virtual_memory().total
