# SPDX-License-Identifier: Apache-2.0
"""Findings of many ranks: equal ones are one line with its ranks, and a thousand ranks are one screen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.site.merged import LEVELS, MOST_ALIKE, merge
from aiperf_mpi.site.text import Examination, to_text

OK, BAD = Finding("ok", "memory", "enough"), Finding("fail", "memory", "too little", "ask for more")


def hosts_of(ranks: int, each: int = 4) -> list[str]:
    return [f"n{rank // each}" for rank in range(ranks)]


def test_a_finding_of_all_ranks_needs_no_place() -> None:
    (seen,) = merge([((0, 1, 2), (OK,)), ((3,), (OK,))], hosts_of(4))
    assert (seen.ranks, seen.hosts, seen.where) == ((0, 1, 2, 3), ("n0",), "")


def test_a_finding_of_some_ranks_names_them() -> None:
    bad, fine = merge([((0, 1), (OK,)), ((2,), (BAD,)), (tuple(range(3, 8)), (OK,))], hosts_of(8))
    assert (bad.finding, bad.where) == (BAD, "rank 2 on n0")
    assert (fine.finding, fine.where) == (OK, "ranks 0-1,3-7 on 2 hosts")
    assert bad.to_dict() == {
        "level": "fail",
        "subject": "memory",
        "text": "too little",
        "remedy": "ask for more",
        "ranks": "2",
        "hosts": 1,
        "host": "n0",
    }


def test_many_different_findings_are_two_lines() -> None:
    # Each of 1,000 ranks has other numbers: the first is shown, and a second one stands for 999.
    found = [((rank,), (Finding("fail", "memory", f"{rank} MiB", "more"),)) for rank in range(1000)]
    seen = merge(found, hosts_of(1000))
    assert [one.where for one in seen] == ["rank 0 on n0", "ranks 1-999 on 250 hosts"]
    assert "1 MiB" in seen[1].finding.text and "similar" in seen[1].finding.text


def test_different_numbers_that_are_fine_are_one_line() -> None:
    found = [((rank,), (Finding("ok", "memory", f"{rank} GiB"),)) for rank in range(9)]
    (seen,) = merge(found, hosts_of(9))
    assert seen.ranks == tuple(range(9)) and "0 GiB (rank 0;" in seen.finding.text and seen.where == ""


def test_subjects_have_an_order_and_the_worst_comes_first() -> None:
    late = Finding("warn", "clocks", "differ", "NTP")
    first, other = Finding("ok", "MPI", "fine"), Finding("warn", "something new", "x", "y")
    seen = merge([((0,), (other, late, OK, first)), ((1,), (BAD,))], hosts_of(2))
    assert [one.finding for one in seen] == [first, BAD, OK, late, other]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(LEVELS),
            st.sampled_from(("memory", "clocks")),
            st.integers(0, 30),
            st.integers(0, 999),
        ),
        min_size=1,
        max_size=200,
    )
)
def test_no_rank_of_a_failure_or_warning_is_lost(drawn: list[tuple[str, str, int, int]]) -> None:
    found = [((rank,), (Finding(level, subject, f"{n}"),)) for level, subject, n, rank in drawn]  # type: ignore[arg-type]
    seen = merge(found, hosts_of(1000))
    for key in {(level, subject) for level, subject, _, _ in drawn}:
        shown = [one for one in seen if (one.finding.level, one.finding.subject) == key]
        assert 1 <= len(shown) <= MOST_ALIKE
        assert {rank for one in shown for rank in one.ranks} == {
            rank for level, subject, _, rank in drawn if (level, subject) == key
        }


def test_a_thousand_bad_ranks_are_one_screen() -> None:
    # Fifteen subjects, of which each is wrong in its own way on each rank: 15 x 2 findings.
    subjects = [f"subject {number}" for number in range(15)]
    found = [
        ((rank,), tuple(Finding("fail", subject, f"{rank} is wrong", "mend it") for subject in subjects))
        for rank in range(1000)
    ]
    hosts = hosts_of(1000)
    examined = Examination(merge(found, hosts), 1000, tuple(dict.fromkeys(hosts)), "srun", "demo", "", 3.0)
    text = to_text(examined)
    assert len(text.splitlines()) <= 2 + 15 * (2 * MOST_ALIKE + 2)
    assert max(map(len, text.splitlines())) <= 80
