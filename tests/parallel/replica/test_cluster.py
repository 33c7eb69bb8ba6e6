# SPDX-License-Identifier: Apache-2.0
"""Trainers of a replica on two hosts with two networks, made of network namespaces, under real MPI."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from aiperf_mpi.links.addresses import Address
from aiperf_mpi.links.candidates import Candidate, Facts
from aiperf_mpi.parallel.replica.cluster import unreachable
from tests.helpers import launch
from tests.helpers.parallel.mpi import PROGRAMS, require

FOLDER = PROGRAMS / "replica"

#: The hosts file of a site whose hosts do not resolve, of Debian's installer, and one that names ib0.
NAMELESS = "127.0.0.1 localhost\n"
DEBIAN = f"{NAMELESS}127.0.1.1 h0\n127.0.1.1 h1\n"
BY_IB = f"{NAMELESS}10.78.0.1 h0\n10.78.0.2 h1\n"

#: Commands that change the hosts: none, and a cut of ib0 between them, as a firewall that drops would be.
AS_MADE, CUT = "true", "test $n = 0 || ip link set ib-1 nomaster"

#: Ranks of a test.
COUNTS = {"mpich": 3, "openmpi": 4}

#: Variables that would lead JAX and gRPC elsewhere.
DIVERTING = {
    "http_proxy": "http://10.9.9.9:3128",
    "grpc_proxy": "http://10.9.9.9:3128",
    "JAX_COORDINATOR_ADDRESS": "10.9.9.9:1",
    "JAX_COORDINATOR_BIND_ADDRESS": "10.9.9.9:1",
    "JAX_LOCAL_DEVICE_IDS": "7",
}


def start(
    mpi: str,
    folder: Path,
    hosts: str,
    change: str,
    arguments: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` on two ranks of h0, and one of h1 (MPICH) or two (Open MPI)."""
    (folder / "hosts").write_text(hosts)
    namespaces = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    lab = [*namespaces, str(FOLDER / "two_networks"), str(folder / "hosts")]
    made = subprocess.run([*lab, AS_MADE, "true"], capture_output=True, text=True, timeout=60)
    if made.returncode:
        pytest.skip(f"this machine does not allow network namespaces: {made.stderr.strip()[-200:]}")
    ssh = str(FOLDER / "net_ssh")
    if mpi == "mpich":
        launcher = ["-launcher", "ssh", "-launcher-exec", ssh, "-hosts", "h0:2,h1:1"]
        launcher += ["-localhost", "10.77.0.254"]
    else:
        launcher = ["--prtemca", "plm_ssh_agent", ssh, "--host", "h0:2,h1:2"]
        launcher += ["--map-by", "ppr:2:node:oversubscribe"]
    command = [*lab, change, launch.launcher(mpi), *launcher, "-n", COUNTS[mpi], launch.python(mpi)]
    command += arguments
    # Open MPI keeps away from ib0 by a variable that is not a hint.
    extra = {"FI_PROVIDER": "tcp", "MPIR_CVAR_CH4_NETMOD": "ofi", "OMPI_MCA_btl_tcp_if_exclude": "lo,ib0"}
    extra |= env or {}
    return subprocess.run(
        [str(part) for part in command],
        env=launch.variables(mpi, extra),
        capture_output=True,
        text=True,
        timeout=100,
    )


def meet(
    mpi: str, folder: Path, hosts: str, change: str, setting: str, env: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return the reports of the trainers: two on h0, and one on h1 (MPICH) or two (Open MPI)."""
    done, count = start(mpi, folder, hosts, change, [FOLDER / "meets.py", folder, setting], env), COUNTS[mpi]
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("mpi", "hosts", "change", "setting", "env"),
    [
        ("mpich", NAMELESS, AS_MADE, "", {}),
        pytest.param("openmpi", NAMELESS, AS_MADE, "", {}, marks=pytest.mark.full),
        pytest.param("mpich", DEBIAN, AS_MADE, "", DIVERTING, marks=pytest.mark.full),
        pytest.param("openmpi", BY_IB, CUT, "", {}, marks=pytest.mark.full),
        pytest.param("mpich", BY_IB, CUT, "", {"FI_TCP_IFACE": "eth0"}, marks=pytest.mark.full),
        pytest.param("mpich", NAMELESS, AS_MADE, "", {"GLOO_SOCKET_IFNAME": "ib0"}, marks=pytest.mark.full),
        pytest.param("mpich", NAMELESS, AS_MADE, "ib0", {}, marks=pytest.mark.full),
        pytest.param("mpich", NAMELESS, AS_MADE, "10.78.0.0/16", {}, marks=pytest.mark.full),
        pytest.param("openmpi", NAMELESS, AS_MADE, "fd78::/64", {}, marks=pytest.mark.full),
        pytest.param("mpich", NAMELESS, AS_MADE, "10.78.0.2", {}, marks=pytest.mark.full),
        pytest.param("mpich", BY_IB, AS_MADE, "h0", {}, marks=pytest.mark.full),
    ],
)
def test_trainers_of_two_hosts_meet(
    mpi: str, hosts: str, change: str, setting: str, env: dict[str, str], tmp_path: Path
) -> None:
    reports = meet(require(mpi), tmp_path, hosts, change, setting, env)
    count = len(reports)
    # Rank r adds r + 1: 6 for three ranks, 10 for four.
    assert [report.get("sum") for report in reports] == [count * (count + 1) / 2] * count, reports
    assert all(report["devices"] == count for report in reports)
    assert all(report["seconds"] < 20 for report in reports)


@pytest.mark.mpi
def test_who_cannot_reach_whom_is_said_in_seconds(tmp_path: Path) -> None:
    reports = meet(require("mpich"), tmp_path, NAMELESS, CUT, "ib0", {"FI_TCP_IFACE": "eth0"})
    problems = {report["problem"] for report in reports}
    assert len(problems) == 1 and all(report["seconds"] < 10 for report in reports)
    problem = problems.pop()
    for part in (
        "rank 0 on host h0 cannot reach rank 2 on host h1 at 10.78.0.2: ",
        "rank 2 on host h1 cannot reach rank 0 on host h0 at 10.78.0.1: ",
        "(tried: parallel.address=ib0); set parallel.address to an interface",
    ):
        assert part in problem, problem


@pytest.mark.mpi
@pytest.mark.full
@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_a_run_whose_trainers_do_not_meet_is_refused(mpi: str, tmp_path: Path) -> None:
    # Rank 0 coordinates; each node has a trainer (MPICH's ranks: two on h0, one on h1).
    sets = ["parallel.trainers_per_replica=2", "parallel.address=ib0", "hpo.enabled=false"]
    run = ["-m", "aiperf_mpi", "--preset", "demo", "--output", tmp_path / "runs" / "x"]
    arguments = [*run, *(word for one in sets for word in ("--set", one))]
    done = start(require(mpi), tmp_path, NAMELESS, CUT, arguments, {"FI_TCP_IFACE": "eth0"})
    said = [line for line in done.stderr.splitlines() if line.startswith("aiperf_mpi: ")]
    assert done.returncode == 2 and len(said) == 1, done.stderr
    assert "on host h1 at 10.78.0.2" in said[0] and "set parallel.address to" in said[0]
    assert "Traceback" not in done.stderr and not (tmp_path / "runs").exists()


@pytest.mark.mpi
@pytest.mark.full
def test_a_setting_that_no_host_knows_is_named(tmp_path: Path) -> None:
    reports = meet(require("mpich"), tmp_path, NAMELESS, AS_MADE, "ib9")
    (problem,) = {report["problem"] for report in reports}
    assert "parallel.address: on host h0 of rank 0: 'ib9' is not an interface of this host" in problem
    assert "eth0 10.77.0.1, ib0 10.78.0.1" in problem


@pytest.mark.mpi
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_trainer_that_cannot_listen_is_named_by_all(
    rank: int, run_program: Callable[..., list[dict[str, Any]]]
) -> None:
    reports = run_program("mpich", 2, "replica/meets", "", rank)
    (problem,) = {report["problem"] for report in reports}
    assert problem.startswith(f"rank {rank} on host ") and "Too many open files" in problem
    assert "cannot listen at a TCP port" in problem and "ulimit -n" in problem


def test_a_large_replica_names_a_few_pairs_of_hosts() -> None:
    # Four hosts of two trainers. h0 and h3 reach no other: h0 with h1, h2, h3 and h3 with h1, h2 are
    # five pairs, in both directions ten.
    of = [
        Facts(f"h{rank // 2}", (Address("eth0", f"10.0.0.{rank // 2}", "10.0.0.0/24"),)) for rank in range(8)
    ]
    way = Candidate("the hosts' names", tuple(fact.own[0].ip for fact in of))

    def apart(a: int, b: int) -> bool:
        return a // 2 != b // 2 and bool({a // 2, b // 2} & {0, 3})

    every = [[{b: "refused" for b in range(8) if apart(a, b)}] for a in range(8)]
    text = unreachable([way], every, range(10, 18), of)
    assert text.count("cannot reach") == 3 and "; 7 more pairs of hosts (tried: the hosts' names)" in text
    assert "rank 10 on host h0 cannot reach rank 12 on host h1 at 10.0.0.1: refused" in text


def test_hosts_without_a_common_network_are_listed() -> None:
    of = [Facts("a", (Address("eth0", "10.0.0.1", "10.0.0.0/24"),)), Facts("b", ())]
    text = unreachable([], [[], []], [1, 2], of)
    assert "a: eth0 10.0.0.1; b: no address but loopback" in text and "parallel.address" in text
