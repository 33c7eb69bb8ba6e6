# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong before the core time ends all ranks within 10 s, with one message that names rank and
host, and leaves nothing."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from aiperf_mpi.results.output import package
from tests.helpers import launch
from tests.helpers.end_to_end import runs, starts
from tests.helpers.slurm import slurm

pytestmark = pytest.mark.mpi

#: Seconds within which all ranks are gone.
SECONDS = 10.0

#: Faults of the sample, by MPI: before MPI_Init on each kind of rank, in a collective call, in the data.
SAMPLE = {
    "mpich": [
        ("import aiperf_mpi.commands.run", 2),
        ("import aiperf_mpi.ending", 1),
        ("import mpi4py", 1),
        ("mpi Split#1", 2),
        ("mpi allgather#1", 0),
        ("import jax", 1),
    ],
    "openmpi": [("import aiperf_mpi.parallel.run", 1), ("mpi Dup#1", 2)],
}


def assert_told(start: starts.Start, name: str) -> None:
    """Check an end before the core time; print its row of the table."""
    print("\n" + start.row(name))
    assert start.code in (2, 5), start
    assert start.seconds < SECONDS, start
    assert len(start.heads) == 1 and "" not in start.heads, start
    assert all("aiperf_mpi: " in line for line in start.err.splitlines() if "Traceback" in line), start
    assert not start.left and not start.segments, start


@pytest.mark.parametrize(
    ("mpi", "fault", "rank"),
    [(mpi, *case) for mpi, cases in SAMPLE.items() for case in cases],
    indirect=["mpi"],
)
def test_a_fault_ends_all_ranks_with_one_message(mpi: str, fault: str, rank: int, tmp_path: Path) -> None:
    start = starts.faulty(mpi, tmp_path, fault, rank)
    assert (tmp_path / "stamp").exists(), start
    assert_told(start, f"{mpi}: {fault} on rank {rank}")
    assert f"rank {rank} on host" in start.ours[-1]


@pytest.mark.full
@pytest.mark.timeout(2400)
def test_forty_faults_at_random_points(mpi: str, tmp_path: Path) -> None:
    drawn = starts.points(mpi, tmp_path / "whole", 40, f"faults {mpi}")
    wrong = []
    for number, (fault, rank) in enumerate(drawn):
        start = starts.faulty(mpi, tmp_path / str(number), fault, rank)
        # A probe, and an import that the caller does without, do not end the start.
        survived = "REACHED" in start.err and not fault.startswith("mpi")
        print("\n" + start.row(f"{mpi}: {fault} on rank {rank}") + (" goes on" if survived else ""), end="")
        try:
            if not survived:
                assert_told(start, fault)
        except AssertionError as error:
            wrong.append(f"{fault} on rank {rank}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("mpi", "number", "delay", "rank"),
    [
        ("mpich", signal.SIGTERM, 0.0, None),
        ("mpich", signal.SIGINT, 1.5, None),
        ("mpich", signal.SIGTERM, 0.7, 2),
        ("openmpi", signal.SIGUSR1, 1.5, None),
    ],
    indirect=["mpi"],
)
def test_a_signal_ends_the_start(
    mpi: str, number: signal.Signals, delay: float, rank: int | None, tmp_path: Path
) -> None:
    start = starts.signalled(mpi, tmp_path, number, delay, rank)
    assert_told(start, f"{mpi}: {number.name} after {delay:g} s to {'all' if rank is None else rank}")
    assert start.code == 5 and f"{number.name} before the core time" in start.ours[-1]
    assert f"rank {rank or 0} on host" in start.ours[-1]


@pytest.mark.parametrize(
    ("mpi", "step", "rank"),
    [("mpich", "first candidate", 1), pytest.param("openmpi", "first candidate", 2, marks=pytest.mark.full)],
    indirect=["mpi"],
)
def test_a_rank_that_ends_does_not_enter_the_core_time(
    mpi: str, step: str, rank: int, tmp_path: Path
) -> None:
    """A rank other than 0 speaks some seconds after its signal; meanwhile the start must not go on."""
    start = starts.faulty(mpi, tmp_path, f"signal {step}", rank)
    assert "REACHED" not in start.err and f"SIGTERM before the core time, in the step {step!r}" in start.err
    assert_told(start, f"{mpi}: SIGTERM in {step!r} on rank {rank}")


@pytest.mark.full
@pytest.mark.timeout(2400)
def test_signals_at_twenty_moments(mpi: str, tmp_path: Path) -> None:
    rng, wrong = random.Random("moments"), []
    for moment in range(20):
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            delay = rng.uniform(0.3, 5.0)
            rank = rng.choice([None, None, 0, 1, 2]) if delay > 1.5 else None
            folder = tmp_path / f"{moment}{signum.name}"
            try:
                start = starts.signalled(mpi, folder, signum, delay, rank, early=True)
            except StopIteration:
                continue  # the rank does not run yet
            name = f"{mpi}: {signum.name} after {delay:.2f} s to {'all' if rank is None else rank}"
            print("\n" + start.row(name), end="")
            # Open MPI's launcher itself ends the ranks on TERM and INT, and drops what they print.
            dropped = mpi == "openmpi" and rank is None and signum != signal.SIGUSR1
            # Before the program's first line a signal does what it does by default: Python turns INT into
            # KeyboardInterrupt, and the launcher combines the codes of its ranks.
            interrupted = signum == signal.SIGINT and start.err.rstrip().endswith("KeyboardInterrupt")
            early = not start.ours and (start.code in (signum, 128 + signum) or interrupted)
            ends = start.seconds < SECONDS and not start.left and (dropped or early or start.code == 5)
            # A result shows that the start was over, even if the launcher drops what rank 0 says of it.
            if any((folder / "out" / "run" / name).exists() for name in (package.PARTIAL, package.RESULT)):
                # The run drains, whichever rank got the signal.
                ends = start.seconds < 30 and (dropped or start.code == 4)
            elif not (dropped or early or len(start.heads) == 1):
                ends = False
            if not ends:
                wrong.append(str(start))
    assert not wrong, "\n".join(wrong)


# -- what the issue shows


def test_other_arguments_on_one_rank(mpi: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    words = ["-m", "aiperf_mpi", "--preset", "demo", "--output", "run", "--config"]
    other = ["-n", "1", launch.python(mpi), *words, "nowhere/a.toml"]
    done = launch.mpirun(3, [*words, "a.toml", ":", *other], mpi=mpi, cwd=tmp_path, timeout=60)
    lines = [line for line in done.stderr.splitlines() if line.startswith("aiperf_mpi: ")]
    assert done.returncode == 2 and len(lines) == 1, done
    assert starts.HEAD.match(lines[0]) or "rank 3 on host" in lines[0]
    assert "nowhere/a.toml" in lines[0] and "rank 0 has" in lines[0]
    assert not (tmp_path / "run").exists()


def test_all_ranks_know_a_usage_error_and_one_tells_it(mpi: str, tmp_path: Path) -> None:
    done = launch.mpirun(3, ["-m", "aiperf_mpi", "--bogus"], mpi=mpi, cwd=tmp_path, timeout=60)
    lines = [line for line in done.stderr.splitlines() if "aiperf_mpi: " in line]
    assert done.returncode == 2 and len(lines) == 1 and "--bogus" in lines[0], done


@pytest.mark.full
@pytest.mark.parametrize(("delay", "rank"), [(0.4, 2), (3.0, 1), (3.0, 0)])
def test_a_stopped_rank_is_named_and_the_job_ends(mpi: str, delay: float, rank: int, tmp_path: Path) -> None:
    # The limit is above the 30 s after which a wait is told.
    env = {"AIPERF_MPI_INIT_SECONDS": "36", "AIPERF_MPI_DATA_SECONDS": "36"}
    job = starts.begin(mpi, tmp_path, ["-m", "aiperf_mpi"], env=env)
    time.sleep(delay)
    stopped = starts.process_of(job, rank)
    stopped.suspend()
    start = starts.end(job, tmp_path, time.time(), limit=120)
    print("\n" + start.row(f"{mpi}: SIGSTOP of rank {rank} after {delay:g} s"))
    assert start.code in (2, 5) and not start.left and not start.segments, start
    assert "MPI_Init" in start.ours[-1] or f"rank {rank}" in start.ours[-1]
    assert not stopped.is_running() or stopped.status() == "zombie"


@pytest.mark.full
def test_a_trainer_without_memory_is_named(mpi: str, tmp_path: Path) -> None:
    words = runs.arguments(tmp_path / "out" / "run", seconds=600)
    python = str(launch.python(mpi))
    limited = ["sh", "-c", 'ulimit -v 1000000; exec "$0" "$@"', python, *words]
    more = [":", "-n", "1", *limited, ":", "-n", "1", python, *words]
    env = {"AIPERF_MPI_DATA_SECONDS": "40", **runs.QUICK_COMPILER}
    done = launch.mpirun(1, [*words, *more], mpi=mpi, env=env, timeout=120)
    assert done.returncode in (2, 5), done
    assert "rank 1 on" in done.stderr and not (tmp_path / "out").exists()


# -- under Slurm, which starts the ranks itself


def test_ranks_that_srun_starts(tmp_path: Path) -> None:
    """A rank with other arguments, and one that cannot import what ends jobs: it asks srun by PMI."""
    python, env = str(launch.python("mpich")), {"FAULT": "import aiperf_mpi.ending", "FAULT_RANK": "1"}
    words = ["srun", "--mpi=pmi2", "--overcommit", "-n", "3"]
    arguments = f"--preset demo --output {tmp_path}/out/run"
    other = f"[ $SLURM_PROCID = 2 ] && more='--seed 3'; exec {python} -m aiperf_mpi {arguments} $more"
    with slurm() as cluster:
        done = cluster.call([*words, "sh", "-c", other], timeout=60)
        lines = [line for line in done.stderr.splitlines() if line.startswith("aiperf_mpi: ")]
        assert done.returncode == 2 and len(lines) == 1, done
        assert lines[0].startswith("aiperf_mpi: rank 2 on host ") and "--seed 3" in lines[0]

        started = time.monotonic()
        env["FAULT_FOLDER"] = str(tmp_path)
        done = cluster.call([*words, python, str(starts.FAULTY), *arguments.split()], env=env, timeout=60)
        assert done.returncode and time.monotonic() - started < 30, done
        assert "aiperf_mpi: rank 1 on host" in done.stderr and "ImportError" in done.stderr
    assert not (tmp_path / "out").exists()
