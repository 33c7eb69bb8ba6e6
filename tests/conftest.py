# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the option that runs long sets whole, and one compilation cache for every process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Before JAX is imported, and inherited by every process that a test starts: compiling is most of the tests'
# time.
os.environ.setdefault("AIPERF_MPI_CACHE", str(ROOT / ".cache"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(os.environ["AIPERF_MPI_CACHE"]) / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Two tests run at a time on as few as two cores: threads of linear algebra that wait for each other would
# take both.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


# An example may take long on a loaded machine: the time limit of a test is pytest's.
settings.register_profile("aiperf_mpi", deadline=None)
settings.load_profile("aiperf_mpi")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run the long sets of tests whole, not just a sample"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what is marked `full` unless --full is given."""
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="a long set: run it with --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT
