# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that start ranks: which MPI, and a way to run a program of `programs/` and read its
reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.helpers import launch
from tests.helpers.parallel.mpi import PROGRAMS, Reports, require


@pytest.fixture(params=["mpich", "openmpi"])
def mpi(request: pytest.FixtureRequest) -> str:
    """Each MPI that has an environment here (or the one that a test names, by `under_both` and indirect)."""
    return require(request.param)


@pytest.fixture
def mpich() -> str:
    """MPICH, for what only its variables can emulate."""
    return require("mpich")


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., Reports]:
    """`run_program(mpi, ranks, name, *arguments, env=None, launcher=())` runs programs/<name>.py, which must
    end with 0, and returns what each rank reported, by rank."""

    def run(
        mpi: str,
        ranks: int,
        name: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (),
        timeout: float = 120,
    ) -> Reports:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        command = [PROGRAMS / f"{name}.py", folder, *(str(argument) for argument in arguments)]
        done = launch.mpirun(ranks, command, mpi=mpi, env=env, launcher_arguments=launcher, timeout=timeout)
        said = f"{name} with {ranks} ranks ended with {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, said
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]

    return run
