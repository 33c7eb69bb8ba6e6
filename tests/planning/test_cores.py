# SPDX-License-Identifier: Apache-2.0
"""The judgement of the ranks' cores: what a launcher took away, and only that."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiperf_mpi.config import Config, load
from aiperf_mpi.machine.affinity import parse_ranges, ranges
from aiperf_mpi.planning.cores import judge
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.rank_resources import RankResources

#: A run with 4 threads that prepare images: a trainer needs 5 cores.
CONFIG = load("demo", (), ["data.workers=4"])


def config(workers: int) -> Config:
    return load("demo", (), [f"data.workers={workers}"])


def option(cores: int) -> str:
    return f"launcher --cores={cores}"


def ranks(
    cpus: Sequence[str],
    to_have: str = "0-7",
    host: str = "n1",
    first: int = 0,
    online: int = 8,
    **more: object,
) -> list[RankResources]:
    """Make the ranks of a host with these CPUs: a coordinator or trainer first, then trainers."""
    roles = ["trainer" if first + index else "coordinator" for index in range(len(cpus))]
    return [
        RankResources(first + i, host, role, own, to_have, online, **more)  # type: ignore[arg-type]
        for i, (own, role) in enumerate(zip(cpus, roles, strict=True))
    ]


def warned(found: Sequence[Finding]) -> list[str]:
    return [str(one) for one in found if one.level != "ok"]


def test_free_ranks_are_fine() -> None:
    found = judge(ranks(["0-7"] * 3), CONFIG, option)
    assert [one.level for one in found] == ["ok"] and "8 cores" in found[0].text


def test_all_ranks_on_one_core() -> None:
    """Slurm's task/affinity binds the process that starts the ranks: 8 cores for 2 ranks are 4 for each."""
    (text,) = warned(judge(ranks(["0", "0"]), config(1), option))
    assert text.startswith("ranks 0-1 on n1 share core 0") and "8 cores" in text and "--cores=4" in text


def test_only_those_that_share_are_named() -> None:
    (text,) = warned(judge(ranks(["0-1", "2", "2", "3"]), config(1), option))
    assert text.startswith("ranks 1-2 on n1 share core 2")


def test_more_ranks_than_cores_are_the_users_choice() -> None:
    """Unbound ranks of a small host have all there is; bound ones leave a core idle."""
    assert not warned(judge(ranks(["0-1"] * 4, to_have="0-1", online=2), config(1), option))
    (text,) = warned(judge(ranks(["0"] * 4, to_have="0-1"), config(1), option))
    assert text.startswith("ranks 0-3 on n1 share core 0")


def test_a_trainer_needs_its_threads() -> None:
    """Open MPI's mpiexec -n 2 binds each rank to a core; 4 threads and the step are 5."""
    (text,) = warned(judge(ranks(["0", "1"]), CONFIG, option))
    assert (
        text.startswith("rank 1 on n1 may use 1 of 8 cores") and "5 threads" in text and "--cores=5" in text
    )
    assert not warned(judge(ranks(["0", "1-5"]), CONFIG, option))


def test_a_small_host_gives_a_trainer_all_it_has() -> None:
    assert not warned(judge(ranks(["0-1", "0-1"], to_have="0-1", online=2), CONFIG, option))


def test_the_job_was_given_more() -> None:
    bound = ranks(["0", "1-2"], given=6, given_by="SLURM_CPUS_ON_NODE")
    (text,) = warned(judge(bound, config(1), option))
    assert "3 cores (0-2)" in text and "given 6 there (SLURM_CPUS_ON_NODE)" in text and "--cores=3" in text


def test_a_variable_that_says_more_than_the_host_has_is_not_believed() -> None:
    assert not warned(judge(ranks(["0-7"] * 2, given=96, given_by="NCPUS", each=48), config(1), option))


def test_a_job_with_a_part_of_its_host_is_told_to_ask_for_more() -> None:
    """Two cores of eight: the launcher has no more to give to the trainer's five threads."""
    (text,) = warned(judge(ranks(["0-1"] * 2, given=2, given_by="SLURM_CPUS_ON_NODE"), CONFIG, option))
    assert "may use 2 of the host's 8 cores" in text and "ask the batch system" in text


def test_a_task_was_given_more() -> None:
    bound = ranks(["0-1", "2-5"], given=6, each=4, each_by="SLURM_CPUS_PER_TASK")
    (text,) = warned(judge(bound, config(1), option))
    assert text.startswith("rank 0 on n1 may use 2 of 4 cores of a task (SLURM_CPUS_PER_TASK)")


def test_a_control_group_with_too_few_cores() -> None:
    (text,) = warned(judge(ranks(["0-1"] * 3, to_have="0-1"), config(1), option))
    assert "2 of the host's 8 cores" in text and "ncpus" in text
    (text,) = warned(judge(ranks(["0-1"] * 2, to_have="0-1"), CONFIG, option))
    assert "2 of the host's 8 cores, but 5 threads" in text


def test_hosts_with_the_same_fault_share_a_line() -> None:
    everyone = [one for host in range(1000) for one in ranks(["0", "1"], host=f"n{host}", first=2 * host)]
    (text,) = warned(judge(everyone[1:], CONFIG, option))
    assert "on 1000 hosts (n0, n1, n2, ...) may use 1 of 8 cores" in text and len(text) < 300


def test_a_rank_on_one_hardware_thread_of_a_core_has_the_core() -> None:
    """Slurm counts both threads of a core; --hint=nomultithread binds ranks to one of each."""
    bound = ranks(["0-3"] * 2, given=8, given_by="SLURM_CPUS_ON_NODE", each=8, with_siblings="0-7")
    assert not warned(judge(bound, config(1), option))
    (text,) = warned(judge(ranks(["0-3"] * 2, given=8, given_by="X", with_siblings="0-3"), config(1), option))
    assert "may use 4 cores (0-3), but the job was given 8 there (X)" in text


def test_a_batch_system_that_counts_cores_gives_their_hardware_threads() -> None:
    """Four cores of two threads are eight CPUs, which suffice for the trainer's five threads."""
    free = {"given": 4, "given_by": "SLURM_CPUS_ON_NODE", "with_siblings": "0-7"}
    assert not warned(judge(ranks(["0-7"] * 2, core_threads=2, **free), CONFIG, option))
    (text,) = warned(judge(ranks(["0-7"] * 2, **free), CONFIG, option))
    assert "may use 4 of the host's 8 cores" in text


def test_a_chain_of_ranks_is_followed_to_its_end() -> None:
    """Each rank has one of two CPUs; the last one moves all of the others, or finds no place."""
    chain = [f"{number}-{number + 1}" for number in range(1000)]
    every = {"to_have": "0-1001", "online": 1002}
    assert not any(
        "share" in text for text in warned(judge(ranks([*chain, "0"], **every), config(1), option))
    )
    text = " ".join(warned(judge(ranks([*chain, "0", "1000"], **every), config(1), option)))
    assert "share 1001 cores (0-1000)" in text


@pytest.mark.parametrize("hosts", [1, 100, 2500])
@pytest.mark.parametrize("cpus", ["all", "one", "two", "same"])
def test_ten_thousand_ranks_are_judged_in_two_seconds(hosts: int, cpus: str) -> None:
    """The time that this process computes, so that other work on the machine does not count."""
    each = 10_000 // hosts

    def own(number: int) -> str:
        texts = {"all": "0-127", "one": f"{number % 128}", "same": "0"}
        return texts.get(cpus) or ranges({number % 128, (number * 7 + number // 128) % 128})

    everyone = [
        one
        for host in range(hosts)
        for one in ranks(list(map(own, range(each))), "0-127", f"n{host}", host * each, online=128)
    ]
    started = time.process_time()
    assert judge(everyone, CONFIG, option)
    assert time.process_time() - started < 2


def test_a_system_that_tells_nothing() -> None:
    (found,) = judge(ranks(["", ""], to_have=""), CONFIG, option)
    assert found.level == "ok" and "does not tell" in found.text


CPUS = st.sets(st.integers(0, 7), min_size=1).map(ranges)


@given(st.lists(CPUS, min_size=2, max_size=6))
def test_one_rank_a_core_is_the_measure(sets: list[str]) -> None:
    """Ranks share cores where no choice of one CPU for each is possible: found by trying all choices."""

    def possible(left: list[set[int]], used: frozenset[int] = frozenset()) -> bool:
        return not left or any(possible(left[1:], used | {cpu}) for cpu in left[0] - used)

    text = " ".join(warned(judge(ranks(sets), config(1), option)))
    assert ("share" in text) == (not possible([parse_ranges(one) for one in sets]))


@pytest.mark.parametrize("cpus", ["0", "0-3", "0-7"])
def test_a_warning_has_a_remedy(cpus: str) -> None:
    for one in judge(ranks([cpus] * 3, given=8, given_by="X"), CONFIG, option):
        assert (one.level == "ok") == (cpus == "0-7") and bool(one.remedy) == (one.level == "warn")
