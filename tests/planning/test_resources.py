# SPDX-License-Identifier: Apache-2.0
"""The judgement of processes and of CPU time: refused is what surely does not suffice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aiperf_mpi.config import load
from aiperf_mpi.machine.limits import Level
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.rank_resources import RankResources, from_dict
from aiperf_mpi.planning.resources import judge_cpu_time, judge_processes

DEMO = load("demo", time_limit=100.0)
GROUP = "/sys/fs/cgroup/pids/job_7"
ROLES = ("coordinator", "trainer", "generator")


def ranks(*levels: Level, cpus: str = "0-1", host: str = "n1", threads: int = 0) -> list[RankResources]:
    """Return three ranks of one host that share these limits on processes."""
    return [
        RankResources(rank, host, role, cpus, on_cpu=True, processes=levels, threads=threads)
        for rank, role in enumerate(ROLES)
    ]


@pytest.mark.parametrize(
    ("free", "level"),
    # Measured with two cores: 3 + 22 + 1 after the checks; 11 were left of 30, where a run died.
    [(11, "fail"), (16, "fail"), (26, "warn"), (60, "ok")],
)
def test_the_threads_that_ranks_will_start(free: int, level: str) -> None:
    (found,) = judge_processes(ranks(Level(GROUP, 100, free)), DEMO)
    assert found.level == level
    if level != "ok":
        assert found.text.startswith("ranks 0-2 on n1") and f"{GROUP}/pids.max leaves {free}" in found.text
        assert "TasksMax=" in found.remedy and "--pids-limit" in found.remedy


def test_the_limit_of_the_remedy_is_enough() -> None:
    """With the limit that the remedy names there is no finding any more."""
    for cpus in ("0", "0-1", "0-15", "0-63"):
        (low,) = judge_processes(ranks(Level(GROUP, 30, 5), cpus=cpus), DEMO)
        enough = int(low.remedy.split("TasksMax=")[1].split(";")[0])
        (found,) = judge_processes(ranks(Level(GROUP, enough, enough - 25), cpus=cpus), DEMO)
        assert low.level == "fail" and found.level == "ok", cpus


def test_more_cores_are_more_threads() -> None:
    """A trainer that may use 64 cores has 377 threads, and the ranks before their start have fewer free."""
    group = Level(GROUP, 512, 300)
    assert judge_processes(ranks(group), DEMO)[0].level == "ok"
    assert judge_processes(ranks(group, cpus="0-63"), DEMO)[0].level == "warn"
    assert judge_processes(ranks(Level(GROUP, 512, 200), cpus="0-63"), DEMO)[0].level == "fail"


def test_ranks_that_have_not_begun_need_all_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    group = Level(GROUP, 40, 30)
    assert judge_processes(ranks(group), DEMO)[0].level == "warn"
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (found,) = judge_processes(ranks(group), DEMO, begun=False, others=2)
    assert found.level == "fail"
    # What this process has itself will be free.
    own = ranks(group)
    own[0] = replace(own[0], threads=10)
    assert judge_processes(own, DEMO, begun=False, others=2)[0].level == "warn"


def test_the_limit_of_a_user_has_its_own_remedy() -> None:
    (found,) = judge_processes(ranks(Level("ulimit -u", 200, 3)), DEMO)
    assert found.level == "fail" and "ulimit -u leaves 3 of 200" in found.text
    assert found.remedy.startswith("ulimit -u ")


def test_each_host_is_judged_alone() -> None:
    wide, low = ranks(Level(GROUP, 500, 400)), ranks(Level(GROUP, 30, 3), host="n2")
    low = [replace(one, rank=one.rank + 3) for one in low]
    (found,) = judge_processes([*wide, *low], DEMO)
    assert found.text.startswith("ranks 3-5 on n2")
    assert judge_processes(ranks(), DEMO)[0].level == "ok"


def cpu_time(free: int, role: str = "trainer", on_cpu: bool = True) -> Finding:
    level = Level("ulimit -t", 1000, free, shared=False)
    (found,) = judge_cpu_time([RankResources(1, "n1", role, "0-1", on_cpu=on_cpu, seconds=(level,))], DEMO)
    return found


@pytest.mark.parametrize(
    # A core time of 100 s; 60 + 2 x (100 + 120) = 500 CPU seconds for a trainer on two cores.
    ("free", "role", "on_cpu", "level"),
    [
        (99, "trainer", True, "fail"),
        (101, "trainer", True, "warn"),
        (499, "trainer", True, "warn"),
        (500, "trainer", True, "ok"),
        (99, "trainer", False, "warn"),
        (99, "generator", False, "warn"),
        (200, "coordinator", False, "ok"),
    ],
)
def test_cpu_seconds(free: int, role: str, on_cpu: bool, level: str) -> None:
    found = cpu_time(free, role, on_cpu)
    assert found.level == level
    if level != "ok":
        assert f"ulimit -t leaves {free} of 1000" in found.text and "rank 1 on n1" in found.text
        assert "ulimit -t unlimited" in found.remedy


def test_limits_are_told_as_they_are() -> None:
    one = replace(ranks(Level(GROUP, 30, 3), threads=5)[1], seconds=(Level("ulimit -t", 9, 8, shared=False),))
    assert from_dict(one.to_dict()) == one
