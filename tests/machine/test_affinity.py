# SPDX-License-Identifier: Apache-2.0
"""CPUs and NUMA nodes of a process, as text and from a tree like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiperf_mpi.machine.affinity import cpus_of_process, numa_nodes, parse_ranges, ranges, with_siblings


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((0, 1, 2, 3, 8), "0-3,8"), ((9, 7, 8, 0), "0,7-9"), (range(0, 128), "0-127")],
)
def test_ranges_are_written_as_the_kernel_does_and_read_back(numbers: tuple[int, ...], text: str) -> None:
    assert ranges(numbers) == text
    assert parse_ranges(f"{text}\n") == set(numbers)


def test_a_long_list_is_cut_between_ranges_and_says_so() -> None:
    # Every other of 128 CPUs: "0,2,4,...,126", 5 x 1 + 45 x 2 + 14 x 3 digits and 63 commas.
    assert len(ranges(range(0, 128, 2))) == 5 + 90 + 42 + 63
    assert ranges(range(0, 128, 2), most=12) == "0,2,4,6,..."


@given(st.sets(st.integers(0, 300)), st.integers(3, 40))
def test_a_cut_list_is_the_longest_that_fits(numbers: set[int], most: int) -> None:
    parts, text = ranges(numbers).split(","), ranges(numbers, most)
    if len(ranges(numbers)) <= most:
        assert text == ranges(numbers)
        return
    kept = text.split(",")[:-1]
    assert len(text) <= most and text.endswith("...") and kept == parts[: len(kept)]
    assert len(",".join([*parts[: len(kept) + 1], "..."])) > most


def test_siblings_are_the_hardware_threads_of_a_core(tmp_path: Path) -> None:
    for cpu in range(8):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(
            f"{cpu % 4},{cpu % 4 + 4}\n"
        )
    assert with_siblings((0, 1, 5), tmp_path) == (0, 1, 4, 5)
    assert with_siblings((9,), tmp_path) == (9,) and with_siblings((), tmp_path) == ()


def test_numa_nodes_are_those_of_the_cpus(tmp_path: Path) -> None:
    for node, cpus in ((0, "0-3,8-11"), (1, "4-7,12-15"), (2, "")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(f"{cpus}\n")
    assert numa_nodes((1, 9), tmp_path) == (0,)
    assert numa_nodes((3, 12), tmp_path) == (0, 1)
    assert numa_nodes((99,), tmp_path) == () == numa_nodes((0,), tmp_path / "missing")


def test_this_process_has_what_the_system_gives_it() -> None:
    assert cpus_of_process() == tuple(sorted(os.sched_getaffinity(0)))
    status = Path("/proc/self/status").read_text().splitlines()
    allowed = next(line for line in status if line.startswith("Cpus_allowed_list"))
    assert ranges(cpus_of_process()) == allowed.split()[1]
