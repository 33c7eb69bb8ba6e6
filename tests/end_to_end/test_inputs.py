# SPDX-License-Identifier: Apache-2.0
"""Input that cannot be read is refused under a real launcher: exit 2, one line with rank and host."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.helpers import launch

pytestmark = pytest.mark.mpi

BOTH = ["mpich", pytest.param("openmpi", marks=pytest.mark.full)]

#: Make the program run as root without the right to pass permissions.
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def run(mpi: str, cwd: Path, *parts: Sequence[str | Path], env: dict[str, str] | None = None) -> str:
    """Run a job whose ranks have one command line each (after `python -m aiperf_mpi`); return the line by
    which it is refused, and check that it leaves nothing."""
    before = sorted(cwd.rglob("*"))
    command: list[str | Path] = [launch.launcher(mpi)]
    for number, (first, *words) in enumerate(parts):
        wrapper = WITHOUT_RIGHTS if first else ()
        program = (*wrapper, launch.python(mpi), "-m", "aiperf_mpi", *words)
        command += [*([":"] if number else []), "-n", "1", *program]
    start = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command],
        env=launch.variables(mpi, env),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert time.monotonic() - start < 30
    ours = [line for line in done.stderr.splitlines() if "aiperf_mpi" in line]
    assert done.returncode == 2 and len(ours) == 1 and not done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and ours[0].isprintable()
    assert sorted(cwd.rglob("*")) == before, "a refused run left something"
    return ours[0]


def job(words: Sequence[str], ranks: int = 3) -> list[list[str]]:
    """Return the parts of a job whose ranks have all rights and one command line."""
    return [["", *words] for _ in range(ranks)]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can give up rights of a rank"
)
@pytest.mark.parametrize("mpi", BOTH)
@pytest.mark.parametrize("what", ["folder", pytest.param("file", marks=pytest.mark.full)])
def test_a_trainer_that_may_not_read_the_data(what: str, mpi: str, tmp_path: Path) -> None:
    """One of two trainers has no permission, as on a node with another group list: its rank is named."""
    data = tmp_path / "data"
    data.mkdir()
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        with open(data / name, "wb") as file:
            file.truncate(30_730_000)
    closed = data if what == "folder" else data / "data_batch_3.bin"
    closed.chmod(0)
    words = ["--preset", "cifar10", "--set", "data.path=data", "--output", "runs/x", "--ranks-per-node", "1"]
    try:
        said = run(mpi, tmp_path, ["", *words], ["", *words], ["closed", *words])
    finally:
        closed.chmod(0o700)
    assert f"rank 2 on host {os.uname().nodename}: data.path: {closed}: user 0 has no permission" in said
    assert "; get permission for it, or name another place" in said


def fifo(path: Path) -> None:
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10**10)


def marked(path: Path) -> None:
    path.write_text("[train]\nlr = 7e9\n", encoding="utf-8-sig")


#: Command lines, what is made at `x` before, and a part of the message.
CASES: dict[str, tuple[list[str], Callable[[Path], object] | None, str]] = {
    "a FIFO as configuration": (["--config", "x"], fifo, "--config {x}: a FIFO, not a file"),
    "a device as configuration": (
        ["--config", "/dev/zero"],
        None,
        "--config /dev/zero: a device, not a file",
    ),
    "10 GB as configuration": (["--config", "x"], sparse, "{x}: has more than 1048576 bytes"),
    "a folder as configuration": (["--config", "x"], Path.mkdir, "--config {x}: a folder, not a file"),
    "a mark in the configuration": (["--config", "x"], marked, "--config x: train.lr: 7000000000.0 is too"),
    "a FIFO as data": (["--set", "data.path=x"], fifo, "data.path: {x}: a FIFO, not a folder"),
    "a URL as data": (["--set", "data.path=s3://b/x"], None, "data.path: s3://b/x: is a URL"),
    "a variable as output": (["--output", "$NOWHERE_1/x"], None, "the variable $NOWHERE_1 in it is not set"),
    "a FIFO as output": (["--output", "x"], fifo, "--output {x}: a FIFO, not a folder"),
    "a loop as output": (["--output", "x"], lambda path: path.symlink_to(path), "links form a loop"),
    "a device as cache": (["--set", "parallel.cache=/dev/null"], None, "parallel.cache: /dev/null: "),
}

#: Those of every run of the tests; the others with --full.
SAMPLE = ("a FIFO as configuration", "a FIFO as output")


@pytest.mark.parametrize("mpi", BOTH)
@pytest.mark.parametrize(
    "name", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.full) for name in CASES]
)
def test_places_of_another_kind(name: str, mpi: str, tmp_path: Path) -> None:
    words, make, part = CASES[name]
    if make is not None:
        make(tmp_path / "x")
    preset = "cifar10" if "data.path" in words[-1] else "demo"
    said = run(mpi, tmp_path, *job(["--preset", preset, *words]))
    assert part.format(x=tmp_path / "x") in said and "rank " in said


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without an entry")
@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_a_user_without_a_home(mpi: str, tmp_path: Path) -> None:
    """An empty HOME is like none: Python would take the root of the file system for it."""
    said = run(mpi, tmp_path, *job(["--preset", "demo", "--output=~/x"]), env={"HOME": ""})
    assert "run.output: ~/x: ~ cannot be expanded: HOME is not set" in said
