# SPDX-License-Identifier: Apache-2.0
"""The quick run (`bin/test --quick`): tests of the pure rooms, in processes that cannot import JAX or MPI."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

#: Folders and files of tests/ that need neither JAX nor MPI and are quick. Reports and output are pure, but
#: their tests draw pages, start processes and write many files.
PURE = (
    "config",
    "data",
    "environment",
    "machine",
    "network",
    "opcount",
    "planning",
    "results/evidence",
    "results/file",
    "results/judge",
    "results/test_result_0_1.py",
    "search",
    "site",
    "trials",
    "test_docs.py",
    "test_jobscripts.py",
    "test_layering.py",
    "test_phases.py",
    "test_streams.py",
)

#: Packages that no test of the quick run may import.
BLOCKED = ("jax", "jaxlib", "flax", "optax", "mpi4py")

#: Markers of tests that the quick run leaves to the whole run, each with the reason that is printed.
LEFT = {"jax": "needs JAX", "mpi": "starts ranks", "slow": "takes long"}

#: How the reason of every test that is left begins, so that the summary can count them.
REASON = "left to the whole run"


class Blocker:
    """An import finder that refuses the blocked packages."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Raise ImportError for a blocked package; leave any other name to the finders after this one."""
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"the quick run blocks {name}: move this test to a folder that is not pure")
        return None


def block_imports() -> None:
    """Make every later import of a blocked package in this process fail."""
    sys.meta_path.insert(0, Blocker())


def is_pure(path: Path, tests: Path) -> bool:
    """Return whether a path below the folder `tests` belongs to the quick run."""
    if not path.is_relative_to(tests) or path == tests:
        return True
    name = path.relative_to(tests).as_posix()
    # A folder above a pure one is entered.
    return any(name == pure or name.startswith(f"{pure}/") or pure.startswith(f"{name}/") for pure in PURE)


def skip_slow(items: list[pytest.Item]) -> None:
    """Skip the tests that the quick run leaves to the whole run."""
    for item in items:
        for marker, reason in LEFT.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"{REASON}: it {reason}"))


def blocked_modules() -> list[str]:
    """Return the names of blocked packages that this process has imported all the same."""
    return [name for name in BLOCKED if name in sys.modules]


def count_left(skipped: list[pytest.TestReport]) -> int:
    """Return how many of the skipped tests are left to the whole run."""
    return sum(REASON in str(report.longrepr) for report in skipped)
