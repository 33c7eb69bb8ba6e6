# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the options --full and --quick, and one compilation cache for every process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from aiperf_mpi.config.paths import expanded
from tests.helpers import compiler, quick

ROOT = Path(__file__).resolve().parent.parent

# Before JAX is imported, and inherited by every process that a test starts: compiling is most of the tests'
# time.
_cache = expanded("AIPERF_MPI_CACHE", os.environ.get("AIPERF_MPI_CACHE") or ROOT / ".cache")
os.environ["AIPERF_MPI_CACHE"] = str(_cache)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# The steps of the tests may be slow.
os.environ.setdefault("XLA_FLAGS", compiler.QUICK)

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
    parser.addoption("--quick", action="store_true", help="run the pure rooms alone, without JAX and MPI")


def pytest_configure(config: pytest.Config) -> None:
    """Block JAX and MPI in each process of a quick run."""
    if config.getoption("--quick"):
        quick.block_imports()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Keep the files of rooms that are not pure out of a quick run."""
    if config.getoption("--quick") and not quick.is_pure(collection_path, ROOT / "tests"):
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests marked `full` without --full, and those that a quick run leaves to the whole run."""
    if config.getoption("--quick"):
        quick.skip_slow(items)
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="a long set: run it with --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a quick run that has imported JAX or MPI."""
    if session.config.getoption("--quick") and (names := quick.blocked_modules()):
        raise pytest.UsageError(f"the quick run has imported {', '.join(names)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many tests a quick run leaves to the whole run."""
    if config.getoption("--quick"):
        left = quick.count_left(terminalreporter.stats.get("skipped", []))
        terminalreporter.write_line(
            f"quick: neither JAX nor MPI was imported; {left} tests are {quick.REASON}"
        )


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository's folder."""
    return ROOT
