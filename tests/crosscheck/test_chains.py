# SPDX-License-Identifier: Apache-2.0
"""The traced steps equal the tables to the last operation, on random morph chains.

All four morphs, even kernels, projections, strides, odd sizes, 32x32, 33x33 and 224x224 images, both
precisions, 1 to 8 devices. To trace a chain takes 0.3 to 0.6 s of a core, so a few processes share them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiperf_mpi.network.architecture import OPS

PROGRAM = Path(__file__).parents[1] / "programs" / "crosscheck" / "chains.py"

#: More processes than this would only wait for memory.
PROCESSES = min(os.cpu_count() or 1, 4)


def check(root: Path, kind: str, first: int, count: int) -> dict[str, Any]:
    """Return the summed reports of all processes on chains `first` to `first + count - 1`."""
    share = -(-count // PROCESSES)
    starts = range(first, first + count, share)
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, PROGRAM, kind, str(start), str(min(share, first + count - start))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environment,
        )
        for start in starts
    ]
    total: dict[str, Any] = {"chains": 0, "seen": {}, "differing": {}}
    try:
        for process in running:
            output, errors = process.communicate()
            assert process.returncode == 0, errors
            report = json.loads(output)
            total["chains"] += report["chains"]
            total["differing"] |= report["differing"]
            for name, number in report["seen"].items():
                total["seen"][name] = total["seen"].get(name, 0) + number
    finally:
        for process in running:
            process.kill()
            process.wait()
    return total


def require(report: dict[str, Any], count: int, least: int = 10) -> None:
    """Check that all chains were compared, with each kind of morph in `least` of them, and none differs."""
    assert report["chains"] == count
    assert min(report["seen"][name] for name in (*OPS, "projection", "even")) >= least, report["seen"]
    assert not report["differing"], "\n".join(report["differing"].values())


def test_24_chains_on_a_shallow_network(root: Path) -> None:
    """Each base, precision and batch (every third) meets each number of devices (every eighth) once."""
    require(check(root, "shallow", 0, 24), 24, least=5)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_676_more_chains_on_a_shallow_network(root: Path) -> None:
    require(check(root, "shallow", 24, 676), 676)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_50_chains_on_the_whole_resnet50(root: Path) -> None:
    require(check(root, "resnet50", 0, 50), 50)
