# SPDX-License-Identifier: Apache-2.0
"""The whole path of an official run: pictures packed, run, verified, packed for a ranking, verified again.

A program of the tests passes rules of its own, with a small data set and a short core time. Nothing is
patched, and the benchmark's own rules find a trial in the same file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers import launch, sources
from tests.helpers.end_to_end import runs
from tests.programs.official import rules

#: Everything that the rules fix, next to the tiny run of the other tests; a test declares the peak of CPUs.
OFFICIAL = (
    "run.official=true",
    "train.precision=float32",
    "train.round_epochs=[1]",
    "train.batch_per_device=64",
    # The last layer has 1000 classes.
    "search.max_parameters=1000000",
    "data.channels=3",
    "data.classes=1000",
    "data.workers=1",
    "data.name=imagenet",
    *(f"{key}={json.dumps(value)}" for key, value in rules.VALUES.items() if key != "run.time_limit"),
    "declared.device=cpu",
    "declared.peak_ops=1e14",
    "declared.source='a test'",
    "declared.vouched_by='a test'",
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the program without changes that no commit holds, with the programs of this test."""
    folder = tmp_path_factory.mktemp("clone")
    for part in ("aiperf_mpi", "bin", "tests/programs/official"):
        shutil.copytree(launch.ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("__pycache__/\n.venv\n")
    (folder / ".venv").symlink_to(launch.ROOT / ".venv")
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "-A"), (*who, "commit", "-q", "-m", "The program of this test")):
        subprocess.run(["git", *words], cwd=folder, check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, clone: Path) -> Path:
    """The made-up pictures, packed by `pack`."""
    folder = tmp_path_factory.mktemp("data")
    made = [
        sources.Sample("train", label, f"{label}_{number}.JPEG", sources.jpeg(2 * position + number))
        for position, label in enumerate(rules.CLASSES)
        for number in range(rules.TRAIN_EACH)
    ]
    made += [
        sources.Sample("val", label, f"ILSVRC2012_val_{number + 1:08d}.JPEG", sources.jpeg(10_000 + number))
        for number, label in enumerate(rules.VAL_CLASSES)
    ]
    source = sources.as_folders(folder / "source", made)
    words = ["-m", "aiperf_mpi", "pack", source, folder / "packed", "--side", rules.SIDE, "--encoding", "raw"]
    done = command(clone, *words)
    assert done.returncode == 0, done.stderr
    return folder / "packed"


def command(clone: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python with some words in the clone."""
    return subprocess.run(
        [launch.python("mpich"), *map(str, words)],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def official(
    clone: Path, folder: Path, packed: Path, sets: Sequence[str] = (), seconds: float = 30
) -> runs.Ended:
    """A run of the clone by the rules of the test."""
    every = (*OFFICIAL, f"data.path={json.dumps(str(packed))}", *sets)
    words = runs.arguments(folder, every, seconds=seconds)
    # The test's program stands for `-m aiperf_mpi run`.
    words[:3] = ["-m", "tests.programs.official.run"]
    env = {**runs.QUICK_COMPILER, "PYTHONPATH": str(clone)}
    done = launch.mpirun(4, words, env=env, cwd=clone, timeout=240)
    return runs.Ended(done.returncode, done.stdout, done.stderr, folder)


@pytest.mark.full
def test_the_whole_path_of_an_official_run(clone: Path, packed: Path, tmp_path: Path) -> None:
    # Two networks are compiled and trained, on loaded cores as well.
    run = official(clone, tmp_path / "run", packed, seconds=60)
    lines = run.lines
    assert run.code == 0 and lines["status"] == "VALID", run.text()
    assert lines["class"] == "official" and "trial_rate_ops" not in lines
    assert float(lines["score_ops"].split()[0]) > 0
    assert "this run is official: nothing is missing before its core time" in run.err
    assert lines["peak"].startswith("declared, ")

    # Packed for a ranking, and verified from the archive.
    archive = tmp_path / "run.tar.gz"
    tools = ("-m", "tests.programs.official.tools")
    done = command(clone, *tools, "submit", tmp_path / "run", "--output", archive)
    assert done.returncode == 0 and "one official run" in done.stdout and "score_ops: " in done.stdout, done
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "received", filter="data")
    (received,) = (path for path in (tmp_path / "received").iterdir() if path.is_dir())
    done = command(clone, *tools, "verify", received / "result.h5")
    assert done.returncode == 0 and "AIPERF_MPI status: VALID" in done.stdout, done.stdout
    assert f"AIPERF_MPI score_ops: {lines['score_ops']}" in done.stdout

    # By the benchmark's own rules the same file is a trial, which says so of itself: not an official result.
    done = command(clone, "-m", "aiperf_mpi", "verify", received / "result.h5", "--json")
    verdict = json.loads(done.stdout)
    assert done.returncode == 3 and (verdict["class"], verdict["valid"]) == ("trial", False), done.stdout
    assert {"V01", "I21", "I12"} == {reason["id"] for reason in verdict["reasons"]}, verdict["reasons"]
    done = subprocess.run(
        [clone / "bin/aiperf-submit", tmp_path / "run", "--output", tmp_path / "b.tar.gz"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3 and "the result is INVALID" in done.stderr, done.stderr

    # The receiver validates the model again on a copy of the data set.
    words = ("verify", received / "result.h5", "--reevaluate", "--data", packed)
    done = command(clone, "-m", "aiperf_mpi", *words)
    assert "V03 repeated passed" in done.stderr, done.stderr


@pytest.mark.full
def test_what_is_missing_is_refused_or_makes_a_trial(clone: Path, packed: Path, tmp_path: Path) -> None:
    """A dirty commit and an unknown peak: each is a line before the core time."""
    changed = tmp_path / "changed"
    shutil.copytree(clone, changed, symlinks=True)
    with open(changed / "aiperf_mpi/__init__.py", "a") as file:
        file.write("# a change\n")
    none = ("declared.device=''", "declared.peak_ops=0.0", "declared.source=''", "declared.vouched_by=''")

    # The commit is known before the data are staged, the devices only then.
    refused = official(changed, tmp_path / "first", packed, none)
    assert refused.code == 2 and "run.official: true, but this run would be a trial" in refused.err
    assert "the program differs from its commit" in refused.err and not (tmp_path / "first").exists()
    refused = official(clone, tmp_path / "second", packed, none)
    assert refused.code == 2 and "1 x cpu: an official run's devices have a peak rate" in refused.err
    assert not (tmp_path / "second").exists()

    trial = official(changed, tmp_path / "third", packed, (*none, "run.official=false"))
    assert trial.code == 0 and trial.lines["class"] == "trial", trial.text()
    assert "this run is a trial; an official run would need this to be mended:" in trial.err
    for line in ("the program differs from its commit", "1 x cpu: an official run's devices have a peak"):
        assert sum(line in one for one in trial.err.splitlines()) == 1, trial.err
