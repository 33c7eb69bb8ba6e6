# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that start ranks: the MPI, and a function that runs a rank program."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.helpers import launch
from tests.helpers.parallel.mpi import PROGRAMS, Reports, require


@pytest.fixture(params=["mpich", pytest.param("openmpi", marks=pytest.mark.full)])
def mpi(request: pytest.FixtureRequest) -> str:
    """Return MPICH, with --full also Open MPI, or the MPI that a test names (`BOTH`, `under_both`)."""
    return require(request.param)


@pytest.fixture
def mpich() -> str:
    """Return MPICH, for what only its variables can emulate."""
    return require("mpich")


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., Reports]:
    """Return `run_program(mpi, ranks, "room/name", *arguments, env=None, launcher=())`.

    It runs tests/programs/parallel/room/name.py, which must end with 0, and returns each rank's report.
    """

    def run(
        mpi: str,
        ranks: int,
        name: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (),
        timeout: float = 120,
    ) -> Reports:
        folder = tmp_path / f"{Path(name).name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        command: list[str | Path] = [
            PROGRAMS / f"{name}.py",
            folder,
            *(str(argument) for argument in arguments),
        ]
        done = launch.mpirun(ranks, command, mpi=mpi, env=env, launcher_arguments=launcher, timeout=timeout)
        output = f"{name} with {ranks} ranks ended with {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, output
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]

    return run
