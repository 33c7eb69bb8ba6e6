# SPDX-License-Identifier: Apache-2.0
"""The launch: the split into roles, the messages of a wrong launch, and ends that end all ranks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import launch
from tests.helpers.parallel.mpi import BOTH, PROGRAMS, Reports, require, several_hosts, under_both

pytestmark = pytest.mark.mpi

ENDS = PROGRAMS / "launch" / "ends.py"


def run_ends(mpi: str, ranks: int, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return launch.mpirun(ranks, [ENDS, *arguments], mpi=mpi, timeout=60, **options)  # type: ignore[arg-type]


def ours(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return our own lines of standard error; launchers add theirs, and Open MPI's adds a NUL to each."""
    return [line for line in done.stderr.replace("\0", "").splitlines() if line.startswith("aiperf_mpi: ")]


# -- the split


def assert_split(reports: Reports, nodes: list[list[int]], trainers: int) -> None:
    """Check the split: `nodes` are the ranks of each node in order, and the first `trainers` of a node
    train."""
    size = len(reports)
    zero = reports[0]
    assert (zero["role"], zero["node"], zero["node_rank"], zero["replica"]) == ("coordinator", -1, -1, -1)
    assert zero["workers"] == 0 and not zero["shared"]

    replica = 0
    for index, members in enumerate(nodes):
        count = min(trainers, len(members))
        replicas = list(range(replica, replica + count))
        for place, rank in enumerate(members):
            report = reports[rank]
            assert report["role"] == ("trainer" if place < count else "generator")
            assert (report["node"], report["node_rank"]) == (index, place)
            assert report["replica"] == (replicas[place] if place < count else -1)
            assert (
                report["queue_group_replicas"] == replicas
                and report["queue_group_generators"] == len(members) - count
            )
            assert report["workers"] == size - 1
            # A replica's queue was filled by all ranks of its node, and by no other.
            assert report["published"] == (members if place < count else [])
        replica += count
    for report in reports:
        assert (report["nodes"], report["replicas"]) == (len(nodes), replica)
        assert report["generators"] == size - 1 - replica
        assert report["seen"] == list(range(size))


#: Nodes by (ranks, ranks per node): 0 makes one of all but rank 0.
NODES = {
    (2, 0): [[1]],
    (3, 0): [[1, 2]],
    (4, 0): [[1, 2, 3]],
    (4, 2): [[1, 2], [3]],
    (7, 0): [[1, 2, 3, 4, 5, 6]],
    (7, 2): [[1, 2], [3, 4], [5, 6]],
    (7, 3): [[1, 2, 3], [4, 5, 6]],
    (7, 4): [[1, 2, 3, 4], [5, 6]],
}


#: Ranks, ranks per node and trainers per node. Some under either MPI in every run of the tests: one node and
#: several, a generator on each node, on one and on none, one trainer and several. The others with --full.
SPLITS = [
    pytest.param(mpi, *case, marks=() if case in sample else pytest.mark.full)
    for mpi, sample in {"mpich": ((4, 0, 2), (4, 2, 1), (7, 4, 3)), "openmpi": ((2, 0, 1), (7, 3, 2))}.items()
    for case in ((2, 0, 1), (3, 0, 1), (4, 0, 2), (4, 2, 1), (7, 0, 1), (7, 2, 2), (7, 3, 2), (7, 4, 3))
]


@pytest.mark.parametrize(("mpi", "ranks", "per_node", "trainers"), SPLITS, indirect=["mpi"])
def test_split(
    mpi: str, ranks: int, per_node: int, trainers: int, run_program: Callable[..., Reports]
) -> None:
    nodes = NODES[ranks, per_node]
    reports = run_program(mpi, ranks, "launch/split_roles", per_node, trainers, "real")
    assert_split(reports, nodes, trainers)
    assert all(report["shared"] for report in reports[1:])
    assert all(report["nodes_on_host"] == len(nodes) and report["with_coordinator"] for report in reports)


def test_groups_that_are_not_contiguous(mpich: str, run_program: Callable[..., Reports]) -> None:
    # Two cliques, {0, 2, 4, 6} and {1, 3, 5}, on hosts of two names: nodes are numbered by their lowest rank.
    env = {"MPIR_CVAR_NUM_CLIQUES": "2"}
    reports = run_program(mpich, 7, "launch/split_roles", 0, 1, 2, env=env)
    assert_split(reports, [[1, 3, 5], [2, 4, 6]], 1)
    assert all(report["shared"] for report in reports[1:])
    assert [report["with_coordinator"] for report in reports] == [True, False] * 3 + [True]


@BOTH
def test_several_hosts(mpi: str, run_program: Callable[..., Reports]) -> None:
    # Three hosts of two ranks: rank 0 shares its host with one node, of one rank, which trains and generates.
    reports = run_program(mpi, 6, "launch/split_roles", 0, 1, "real", launcher=several_hosts(mpi, 3, 2))
    assert_split(reports, [[1], [2, 3], [4, 5]], 1)
    assert [report["with_coordinator"] for report in reports] == [True, True, False, False, False, False]
    assert all(report["nodes_on_host"] == 1 for report in reports)


@pytest.mark.parametrize("env", [{"MPIR_CVAR_NUM_CLIQUES": "2"}, {"MPIR_CVAR_NOLOCAL": "1"}])
def test_ranks_per_node_without_shared_memory(
    mpich: str, env: dict[str, str], run_program: Callable[..., Reports]
) -> None:
    reports = run_program(mpich, 5, "launch/split_roles", 2, 1, "real", env=env)
    assert_split(reports, [[1, 2], [3, 4]], 1)
    assert not any(report["shared"] for report in reports)


@pytest.mark.parametrize("env", [{"MPIR_CVAR_NUM_CLIQUES": "2"}, {"MPIR_CVAR_NOLOCAL": "1"}])
def test_groups_that_disagree_with_the_host_names(mpich: str, env: dict[str, str]) -> None:
    done = run_ends(mpich, 4, "split", env=env)
    assert done.returncode == 2
    (line,) = ours(done)
    assert "MPI finds no memory that they share" in line and "--ranks-per-node K" in line


def test_a_group_on_several_hosts(mpi: str) -> None:
    # Every rank has another host name, so either the names or MPI's shared-memory groups are wrong.
    command = [PROGRAMS / "launch" / "split_roles.py", "unused", "0", "1", "4"]
    done = launch.mpirun(4, command, mpi=mpi, timeout=60)
    assert done.returncode == 2
    (line,) = ours(done)
    assert "ranks 1, 2, 3 make one node, but are on the hosts host1, host2, host3" in line


# -- wrong launches


def test_one_rank_is_refused_with_the_right_command(mpi: str) -> None:
    done = run_ends(mpi, 1, "split")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = ours(done)
    assert (
        "needs at least 2" in line
        and f"{launch.launcher(mpi)} -n N {launch.python(mpi)} -m aiperf_mpi" in line
    )


def test_missing_mpi_is_refused_with_the_remedy(mpi: str, tmp_path: Path) -> None:
    env = launch.variables(mpi, {"MPI4PY_LIBMPI": "/nonexistent/libmpi.so"})
    command = [launch.python(mpi), "-m", "aiperf_mpi", "--preset", "demo", "--output", str(tmp_path / "run")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert "cannot open shared object file" in line and "aiperf_mpi[mpich]" in line
    assert not (tmp_path / "run").exists()


def test_missing_launcher_is_refused_with_the_right_command(mpi: str) -> None:
    # A process without any launcher.
    done = subprocess.run(
        [launch.python(mpi), ENDS, "split"],
        env=launch.variables(mpi),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    (line,) = ours(done)
    assert "needs at least 2" in line and f"-n N {launch.python(mpi)} -m aiperf_mpi" in line


@pytest.mark.parametrize(("starter", "library"), [("openmpi", "mpich"), ("mpich", "openmpi")])
def test_the_launcher_of_another_mpi(starter: str, library: str) -> None:
    require(starter), require(library)
    command = [launch.launcher(starter), "-n", "3", launch.python(library), ENDS, "split"]
    env = launch.variables("openmpi")
    done = subprocess.run(
        [str(part) for part in command], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    (line,) = ours(done)
    assert "started 3 ranks, but to MPI each of them is alone" in line
    assert f"{launch.launcher(library)} -n 3 {launch.python(library)} -m aiperf_mpi" in line
    assert "Traceback" not in done.stderr and "suspicious" not in done.stderr


def test_mpi_with_fewer_ranks_than_the_launcher_started(mpich: str) -> None:
    # A launcher that started 5 ranks of which MPI sees 2 (by a variable that MPICH does not read itself).
    done = run_ends(mpich, 2, "split", env={"MV2_COMM_WORLD_SIZE": "5"})
    assert done.returncode == 2
    (line,) = ours(done)
    assert "started 5 ranks, but MPI" in line and "sees 2" in line


def test_shared_memory_that_is_too_small(mpi: str) -> None:
    # No machine has a pebibyte of it.
    done = run_ends(mpi, 3, "memory")
    assert done.returncode == 2
    (line,) = ours(done)
    assert (
        "/dev/shm has" in line
        and "the windows take 1073741824 MiB" in line
        and "parallel.history_capacity" in line
    )


# -- ends


@pytest.mark.parametrize(
    ("mpi", "code"), under_both((0,), (2,), (3,), (4,), openmpi=[(0,), (4,)]), indirect=["mpi"]
)
def test_an_agreed_exit(mpi: str, code: int) -> None:
    done = run_ends(mpi, 4, f"agree{code}")
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("mpi", "how", "words"),
    under_both(
        ("raise", "ValueError: this rank is broken"),
        ("unheard", "ValueError: this rank is broken"),
        ("thread", "RuntimeError: the thread of this rank is broken"),
        ("leave", "SystemExit: 0"),
        openmpi=[("raise", "ValueError: this rank is broken")],
    ),
    indirect=["mpi"],
)
def test_one_broken_rank_ends_the_job(mpi: str, how: str, words: str) -> None:
    started = time.monotonic()
    done = run_ends(mpi, 3, how)
    assert done.returncode == 5
    assert time.monotonic() - started < 30

    # Its traceback is complete, every line names the rank, and no other rank adds a traceback.
    lines = ours(done)
    assert all(line.startswith("aiperf_mpi: rank 2 on ") for line in lines)
    assert "Traceback" in lines[0] and words in lines[-2] and "exit code 5" in lines[-1]


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_rank_waits_until_its_output_is_read(mpich: str, kind: str) -> None:
    # The reader reads after 0.3 s; the rank that is about to abort waits until then.
    script = f"""
import os, socket, threading, time
from aiperf_mpi import ending
if {kind!r} == "pipe":
    reader, writer = os.pipe()
else:
    pair = socket.socketpair()
    reader, writer = pair[0].fileno(), pair[1].fileno()
os.write(writer, b"the last words" * 100)
started = time.monotonic()
threading.Timer(0.3, os.read, (reader, 65536)).start()
ending.until_read(writer)
waited = time.monotonic() - started
assert 0.25 < waited < 4, waited

# Nothing to wait for: a pipe that is empty, a file, what is closed.
started = time.monotonic()
ending.until_read(writer)
ending.until_read(os.open(ending.__file__, os.O_RDONLY))
ending.until_read(1000)
ending.until_read(socket.create_server(("127.0.0.1", 0)).fileno())
assert time.monotonic() - started < 3
"""
    done = subprocess.run(
        [launch.python(mpich), "-c", script],
        env=launch.variables(mpich),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_an_error_of_all_ranks_is_printed_once(mpi: str) -> None:
    done = run_ends(mpi, 4, "alike")
    assert done.returncode == 2
    assert ours(done) == ["aiperf_mpi: rank 1 lacks something"]


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.full)])
def test_a_rank_that_stops_in_a_collective_call_is_named(mpi: str, rank: int) -> None:
    """No rank can ask it by MPI, but the system shows processes of the same host that are stopped."""
    done = run_ends(mpi, 3, "stopped", str(rank), env={"AIPERF_MPI_INIT_SECONDS": "3"})
    assert done.returncode == 5
    found = [line for line in ours(done) if "is in the step 'windows'" in line]
    assert found and all(f"stopped: rank {rank} on" in line and "kill -CONT" in line for line in found)


@pytest.mark.full
def test_the_time_in_which_rank_0_is_stopped_is_no_wait(mpi: str) -> None:
    # It may wait for 6 s, and the last rank comes after 7 s; for 5 s of them rank 0 was stopped.
    done = run_ends(mpi, 3, "resumed", env={"AIPERF_MPI_INIT_SECONDS": "6"})
    assert done.returncode == 0 and not ours(done), done.stderr


def test_a_launch_error_of_one_rank_hangs_no_rank(mpi: str) -> None:
    done = run_ends(mpi, 3, "alone")
    assert done.returncode == 2
    assert "only the last rank raises this" in ours(done)[-1]


def test_importing_starts_nothing(mpi: str) -> None:
    code = (
        "import sys; from aiperf_mpi.parallel.launch import job; "
        "from aiperf_mpi.parallel.shared import claims, clock, history, messages, queue; "
        "from mpi4py import MPI; assert not MPI.Is_initialized(); assert 'jax' not in sys.modules"
    )
    done = subprocess.run(
        [launch.python(mpi), "-c", code],
        env=launch.variables(mpi),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_killed_launcher_leaves_no_rank(tmp_path: Path) -> None:
    # MPICH's launcher alone is killed in the middle of a run: its proxies end the ranks. Those of Open MPI
    # stay, as their daemon is the launcher itself.
    job = launch.start(3, [ENDS, "sleep"])
    time.sleep(2.0)
    running = launch.processes(job)
    assert len(running) == 5
    job.kill()
    assert launch.finish(job, 20).returncode != 0
    launch.wait_for_end(running)


@BOTH
def test_killed_from_outside_leaves_no_rank(mpi: str, tmp_path: Path) -> None:
    # The launcher and all below it are killed; no process may stay.
    job = launch.start(3, [ENDS, "sleep"], mpi=mpi)
    time.sleep(2.0)
    running = launch.processes(job)
    assert len(running) >= 4
    launch.kill(job)
    assert launch.finish(job, 20).returncode != 0
    launch.wait_for_end(running, 5)
