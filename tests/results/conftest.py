# SPDX-License-Identifier: Apache-2.0
"""What the tests of results share."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.results.judge.judge import judge
from aiperf_mpi.results.output import process
from tests.helpers.results.example_run import example_run


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid result."""
    target = tmp_path_factory.mktemp("result") / "result.h5"
    hdf5.write(target, process.final_image(example_run().run()))
    assert judge(target).valid
    return target
