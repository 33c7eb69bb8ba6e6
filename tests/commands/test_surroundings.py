# SPDX-License-Identifier: Apache-2.0
"""What a shell or a job takes from a command: standard streams, descriptors, memory. Each ends in one
line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.results.output import process
from tests.helpers.launch import ROOT
from tests.helpers.results.example_run import example_run

PROGRAM, SUBMIT = ["-m", "aiperf_mpi"], ["-m", "aiperf_mpi.results.output.submit"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a valid result."""
    path = tmp_path_factory.mktemp("run") / "result.h5"
    hdf5.write(path, process.final_image(example_run().run()))
    return path


def after(setup: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with `words` in a shell, after the shell's commands `setup`."""
    command = ["bash", "-c", f'{setup}; exec "$@"', "bash", sys.executable, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Fail unless a command ended with 2 and one line that has all `words`."""
    shown = f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1, shown
    assert all(word in done.stderr for word in words), shown


@pytest.mark.parametrize(
    ("setup", "reason"),
    [("exec >/dev/full", "no space left on device"), ("exec >&-", "it is closed")],
    ids=["no space", "closed"],
)
def test_a_lost_answer_is_no_success(setup: str, reason: str, result: Path) -> None:
    told = "cannot write to standard output: "
    for words in (
        [*PROGRAM, "--help"],
        [*PROGRAM, "--version"],
        [*PROGRAM, "run", "--help"],
        [*PROGRAM, "run", "--check"],
        [*PROGRAM, "verify", result],
        [*PROGRAM, "flops", "--analytical"],
        [*SUBMIT, "--help"],
    ):
        assert_refused(after(setup, *words), told + reason)


def test_an_answer_without_a_reader_is_no_success_and_no_message(result: Path) -> None:
    for words in (["--help"], ["verify", result], ["flops", "--analytical", "--json"]):
        # The shell's child has a pipe without a reader.
        done = after("exec > >(:); sleep 0.2", *PROGRAM, *words)
        assert done.returncode == 141 and not done.stderr, done.stderr


@pytest.mark.parametrize("setup", ["exec 2>&-", "exec <&- 2>&-", "exec 2>/dev/full"])
def test_a_refusal_is_never_an_answer(setup: str, tmp_path: Path) -> None:
    for words in (
        [*PROGRAM, "verify", tmp_path / "none"],
        [*PROGRAM, "verify"],
        [*PROGRAM, "unknown"],
        [*PROGRAM, "run", "--unknown"],
        [*SUBMIT, tmp_path, "--output", tmp_path / "a.tar.gz"],
    ):
        done = after(setup, *words)
        assert done.returncode == 2 and not done.stdout, (words, done.stdout)


def test_no_file_takes_the_number_of_a_closed_standard_error(tmp_path: Path) -> None:
    # The page is written while standard error is closed, and the message goes nowhere.
    code = (
        "from aiperf_mpi.descriptors import guard, tell; import os, sys; guard()\n"
        "number = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "tell('a message'); os.write(2, b'another')\n"
        "sys.exit(number < 3)"
    )
    done = after("exec <&- 2>&-", "-c", code, tmp_path / "page")
    assert done.returncode == 0 and not (tmp_path / "page").read_bytes()


@pytest.mark.parametrize("command", ["verify", "report"])
def test_too_few_descriptors_are_a_reason(command: str, result: Path) -> None:
    for number in (5, 6, 8):
        assert_refused(
            after(f"ulimit -n {number}", *PROGRAM, command, result), "Too many open files", "ulimit"
        )


def test_a_reader_that_is_killed_does_not_blame_the_file(result: Path) -> None:
    code = (
        "import os, signal, sys; from aiperf_mpi.results.file import apart\n"
        "apart.read_apart(sys.argv[1]); os.kill(apart._READER._process.pid, signal.SIGKILL)\n"
        "apart.read_apart(sys.argv[1])"
    )
    done = after("true", "-c", code, result)
    assert "was killed: a limit on memory or CPU time" in done.stderr


def test_flops_is_refused_where_jax_would_abort(result: Path) -> None:
    limit = "ulimit -v 1500000"
    for words in (["flops"], ["flops", "--preset", "demo", "--json"], ["verify", "--reevaluate", result]):
        assert_refused(after(limit, *PROGRAM, *words), "ulimit -v is 1.4 GiB", "ulimit -v unlimited")
    assert after(limit, *PROGRAM, "flops", "--analytical").returncode == 0


def test_memory_that_ends_in_a_command_is_a_reason() -> None:
    code = (
        "import sys; from aiperf_mpi import __main__; from aiperf_mpi.commands import flops\n"
        "def fail(request): raise MemoryError\n"
        "flops.print_page = lambda *words: fail(0)\n"
        "sys.exit(__main__.main(['flops', '--analytical']))"
    )
    assert_refused(after("true", "-c", code), "not enough memory")
