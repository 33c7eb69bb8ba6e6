# SPDX-License-Identifier: Apache-2.0
"""What a rank holds since before MPI is told also where MPI itself fails then."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers import launch

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("words", [(), ("doctor",)])
def test_a_held_error_and_no_mpi_library(words: tuple[str, ...], mpich: str, tmp_path: Path) -> None:
    command = ["-m", "aiperf_mpi", *words, "--config", tmp_path / "absent.toml"]
    done = launch.mpirun(2, command, mpi=mpich, env={"MPI4PY_LIBMPI": "/nonexistent/libmpi.so"}, timeout=60)
    first = [line for line in done.stderr.splitlines() if line.startswith("aiperf_mpi: rank 0 on host ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(first) == 2 and "absent.toml" in first[0] and "/nonexistent/libmpi.so" in first[1]


def test_a_held_error_and_the_launcher_of_another_mpi(mpi: str, tmp_path: Path) -> None:
    other = {"mpich": "openmpi", "openmpi": "mpich"}[mpi]
    command = [launch.launcher(mpi), "-n", "2", launch.python(other), "-m", "aiperf_mpi"]
    command += ["--config", str(tmp_path / "absent.toml")]
    done = subprocess.run(
        [str(part) for part in command],
        env=launch.variables("openmpi"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "absent.toml" in done.stderr and "do not belong together" in done.stderr
