# SPDX-License-Identifier: Apache-2.0
"""What cannot run is refused before anything trains: exit 2 and one clear line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from aiperf_mpi.__main__ import parser
from aiperf_mpi.config import load
from aiperf_mpi.config.classes import fixed_departures
from aiperf_mpi.config.config import preset_names
from aiperf_mpi.paper import IMAGENET_IMAGES
from tests.helpers import launch
from tests.helpers.end_to_end import runs

pytestmark = pytest.mark.mpi


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 2, nothing on standard output, and one line of ours that has all the words."""
    ours = [line for line in done.stderr.splitlines() if "aiperf_mpi" in line]
    assert done.returncode == 2, done.stdout + done.stderr
    assert not done.stdout.strip() and len(ours) == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in ours[0], ours[0]


CASES: dict[str, tuple[list[str], list[str]]] = {
    "unknown option": (["--preset", "demo", "--tiem-limit", "5"], ["--tiem-limit", "--help"]),
    "no number": (["--preset", "demo", "--time-limit", "soon"], ["--time-limit", "soon"]),
    "unknown preset": (["--preset", "dmo"], ["dmo", "demo"]),
    "unknown key": (
        ["--preset", "demo", "--set", "train.batch=3"],
        ["train.batch", "train.batch_per_device"],
    ),
    "wrong type": (["--preset", "demo", "--set", 'train.lr="fast"'], ["train.lr", "fast"]),
    "impossible value": (["--preset", "demo", "--set", "train.epochs=0"], ["train.epochs"]),
    "broken TOML": (["--config", "broken.toml"], ["broken.toml", "TOML"]),
    "missing file": (["--config", "absent.toml"], ["absent.toml"]),
    "missing data": (["--preset", "cifar10", "--set", "data.path='nowhere'"], ["nowhere"]),
    "imagenet": (
        ["--preset", "imagenet", "--set", "data.path='.'"],
        ["manifest.json: does not exist", "python -m aiperf_mpi pack"],
    ),
    "unknown command": (["verfy", "x"], ["unknown command 'verfy'; did you mean verify?"]),
    "output in use": (["--preset", "demo", "--output", "."], ["--output", "not empty"]),
    "output under a file": (["--preset", "demo", "--output", "broken.toml/run"], ["--output", "broken.toml"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, tmp_path: Path) -> None:
    words, expected = CASES[name]
    (tmp_path / "broken.toml").write_text("[run\nseed = 1")
    done = launch.mpirun(2, ["-m", "aiperf_mpi", *words], cwd=tmp_path, timeout=90)
    refused(done, *expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.toml"], (
        "a refused run left something in the folder"
    )


@pytest.mark.parametrize(
    ("batch", "least"),
    [pytest.param("train.batch_per_device=32", 128, marks=pytest.mark.full), ("hpo.batches=[8,64]", 256)],
)
def test_a_batch_over_all_devices_beyond_the_data(tmp_path: Path, batch: str, least: int) -> None:
    """How many devices there are is known in the run alone; a trial of such a batch could only fail."""
    key = batch.partition("=")[0]
    sets = (
        "train.batch_per_device=8",
        "hpo.batches=[8]",
        "data.train_images=100",
        "parallel.host_devices=4",
        batch,
    )
    done = launch.mpirun(3, runs.arguments(tmp_path / "run", sets), timeout=90)
    refused(done, key, "4 devices", str(least), "100 training images")
    assert not (tmp_path / "run").exists(), "a refused run left something in the folder"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_too_little_space(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True, timeout=10
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        done = launch.mpirun(
            3, ["-m", "aiperf_mpi", "--preset", "demo", "--output", small / "run"], timeout=90
        )
        refused(done, "--output", "free")
    finally:
        subprocess.run(["umount", small], check=True, timeout=10)


def test_one_rank_says_how_to_launch(tmp_path: Path) -> None:
    done = launch.mpirun(1, runs.arguments(tmp_path / "run"), timeout=60)
    refused(done, "1 rank", "mpiexec")


def test_an_official_run_is_refused_with_each_thing_that_it_lacks(tmp_path: Path) -> None:
    """The demo departs from many fixed rules; each is a line, and the run leaves nothing."""
    words = ["-m", "aiperf_mpi", "--preset", "demo", "--time-limit", "60", "--set", "run.official=true"]
    done = launch.mpirun(2, words, cwd=tmp_path, timeout=90)
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir()), done
    lines = [line.partition(" on host ")[2].partition(": ")[2] for line in done.stderr.splitlines()]
    assert lines[0] == (
        "run.official: true, but this run would be a trial; mend this, or leave run.official out:"
    )
    fixed = [str(one) for one in fixed_departures(load("demo", time_limit=60.0))]
    assert len(fixed) > 8 and lines[1 : len(fixed) + 1] == fixed, done.stderr
    # The program of a test may have changes that no commit holds.
    assert all("program" in line for line in lines[len(fixed) + 1 :]), done.stderr


@pytest.mark.parametrize("ranks", [0, 1, 3])
def test_a_command_that_chooses_no_run_says_which_there_are(ranks: int, tmp_path: Path) -> None:
    """Without ImageNet, with a launcher and without: one screen, by one rank, with a command for each run."""
    command = ["-m", "aiperf_mpi", "--seed", "3"]
    if ranks:
        done = launch.mpirun(ranks, command, cwd=tmp_path, timeout=60)
    else:
        done = subprocess.run(
            [sys.executable, *command],
            env=launch.variables("mpich"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    lines = [line.removeprefix("aiperf_mpi: ") for line in done.stderr.splitlines()]
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir()), done
    assert done.stderr.count("nothing to run yet") == 1 and "rank 0" not in done.stderr, done.stderr
    assert len(lines) <= 20 and all(len(line) <= 68 for line in lines if "mpiexec" not in line), lines

    # Each command begins a run: a parser takes it, and its preset is one.
    commands = [line.split(" -m aiperf_mpi ")[1] for line in lines if " -m aiperf_mpi " in line]
    given = [parser().parse_args(["run", *words.split()]) for words in commands]
    assert [one.preset for one in given] == ["demo", "imagenet-synthetic", "imagenet"]
    assert set(preset_names()) >= {one.preset for one in given}
    assert given[2].sets == ["data.path=DST", "run.official=true"]

    # What is said of time and data follows from the presets and the packed form.
    limits = [load(one.preset).run.time_limit for one in given]
    assert limits[0] < 180 and limits[1:] == [3600, 12 * 3600]
    assert "244 GiB" in done.stderr and round(sum(IMAGENET_IMAGES) * 256 * 256 * 3 / 2**30) == 244


def test_without_a_launcher(tmp_path: Path) -> None:
    command: Sequence[str] = [sys.executable, *runs.arguments(tmp_path / "run")]
    done = subprocess.run(command, env=launch.variables("mpich"), capture_output=True, text=True, timeout=60)
    refused(done, "1 rank", "-n N")


def test_time_limit_beyond_the_job(tmp_path: Path) -> None:
    import time

    env = {"SLURM_JOB_END_TIME": str(int(time.time() + 300))}
    done = launch.mpirun(3, runs.arguments(tmp_path / "run", seconds=400), env=env, timeout=60)
    refused(done, "--time-limit")


def test_help_and_check_need_no_mpi() -> None:
    """`--help`, `--version` and `run --check` work where neither MPI nor JAX can be imported."""
    block = (
        "import sys; sys.modules['mpi4py.MPI'] = sys.modules['jax'] = None; from aiperf_mpi.__main__ import "
        "main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    for words in (["--version"], ["--help"], ["run", "--preset", "demo", "--check"]):
        done = subprocess.run(
            [sys.executable, "-c", block, *words], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and done.stdout, done.stderr


def test_mpi_that_ends_the_process_in_its_initialisation(tmp_path: Path) -> None:
    environ = {"UCX_TLS": "rc", "UCX_NET_DEVICES": "mlx5_0:1", "FI_PROVIDER": "verbs"}
    words = ["-m", "aiperf_mpi", "--preset", "demo", "--output", tmp_path / "run"]
    done = launch.mpirun(2, words, env=environ, timeout=60)
    assert done.returncode and "MPI_Init has ended this process; unset or correct" in done.stderr, done.stderr
    assert "UCX_NET_DEVICES, UCX_TLS" in done.stderr and "aiperf_mpi: rank " in done.stderr
