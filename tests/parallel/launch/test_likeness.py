# SPDX-License-Identifier: Apache-2.0
"""Ranks of unlike versions are refused before the core time, by `run` and by `doctor`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.helpers import launch

pytestmark = pytest.mark.mpi


def unlike(mpi: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command on three ranks, of which the last one finds another version of optax first."""
    other = folder / "other" / "optax-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n")
    path = f"PYTHONPATH={other.parent}:{launch.ROOT}"
    changed = ["-env", *path.split("=")] if mpi == "mpich" else ["-x", path]
    command = [str(launch.python(mpi)), "-m", "aiperf_mpi", *words, "--preset", "demo"]
    command += ["--output", str(folder / "run")]
    return subprocess.run(
        [str(launch.launcher(mpi)), "-n", "2", *command, ":", "-n", "1", *changed, *command],
        env=launch.variables(mpi),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )


@pytest.mark.parametrize("mpi", ["mpich", pytest.param("openmpi", marks=pytest.mark.full)], indirect=True)
def test_a_run_refuses_unlike_versions(mpi: str, tmp_path: Path) -> None:
    done = unlike(mpi, tmp_path)
    lines = [line for line in done.stderr.replace("\0", "").splitlines() if line.startswith("aiperf_mpi: ")]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith("aiperf_mpi: optax differs: ") and "0.0.1 on rank 2; start all" in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_doctor_names_the_ranks(mpi: str, tmp_path: Path) -> None:
    done = unlike(mpi, tmp_path, "doctor", "--json")
    told = json.loads(done.stdout[done.stdout.find("{") :].replace("\0", ""))
    found = [finding for finding in told["findings"] if finding["subject"] == "versions"]
    assert done.returncode == 2 and [finding["level"] for finding in found] == ["fail"]
    assert "0.0.1 on rank 2" in found[0]["text"]
