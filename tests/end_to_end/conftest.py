# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests: which MPI, and one run that several tests look at."""

from __future__ import annotations

import pytest

from tests.helpers import launch
from tests.helpers.end_to_end import runs


@pytest.fixture(scope="module", params=["mpich", pytest.param("openmpi", marks=pytest.mark.full)])
def mpi(request: pytest.FixtureRequest) -> str:
    """MPICH, with --full also Open MPI, or the MPI that a test names (`BOTH`)."""
    if not launch.available(request.param):
        pytest.skip(
            f"there is no environment for {request.param} ({launch.launcher(request.param)}): see bin/test"
        )
    return request.param


@pytest.fixture(scope="module")
def ended(mpi: str, tmp_path_factory: pytest.TempPathFactory) -> runs.Ended:
    """A run of four ranks: coordinator, trainer, two generators. Several of its trials must end on a loaded
    machine."""
    folder = tmp_path_factory.mktemp(mpi) / "run"
    return runs.run(4, folder, seconds=runs.SECONDS, mpi=mpi)


@pytest.fixture
def read(ended: runs.Ended, mpi: str, request: pytest.FixtureRequest) -> runs.Ended:
    """The run, for tests of programs that read its files without MPI: that of MPICH, or both with --full."""
    if mpi != "mpich" and not request.config.getoption("--full"):
        pytest.skip("a long set: run it with --full")
    return ended
