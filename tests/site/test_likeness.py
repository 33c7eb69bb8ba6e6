# SPDX-License-Identifier: Apache-2.0
"""Ranks with unlike software are refused, and the message says what differs where."""

from __future__ import annotations

import platform

import numpy

from aiperf_mpi.site.likeness import LIKE, UNKNOWN, identity, judge

MINE = {"python": "3.11.2", "jax": "0.10.2", "numpy": "2.4.6"}


def test_equal_ranks_are_one_line() -> None:
    (found,) = judge([(MINE, (0, 1, 2))])
    assert found.level == "ok" and "jax 0.10.2" in found.text


def test_each_difference_is_told_with_its_ranks() -> None:
    other = {**MINE, "jax": "0.9.0", "python": "3.12.1"}
    found = judge([(MINE, (0, 1, 2, 4)), (other, (3,))])
    assert [finding.level for finding in found] == ["fail", "fail"]
    assert found[0].text == "python differs: 3.11.2 on ranks 0-2,4, 3.12.1 on rank 3"
    assert found[1].text == "jax differs: 0.10.2 on ranks 0-2,4, 0.9.0 on rank 3"
    assert "same environment" in found[0].remedy


def test_many_ways_to_differ_are_one_line() -> None:
    kinds = [({"jax": f"0.{n}"}, (n, n + 10)) for n in range(10)]
    (found,) = judge(kinds)
    assert found.text.endswith(", and 7 more") and len(found.text) < 200


def test_a_missing_package_differs_from_an_installed_one() -> None:
    (found,) = judge([({"jax": "1"}, (0,)), ({}, (1,))])
    assert "1 on rank 0, unknown on rank 1" in found.text


def test_what_a_rank_cannot_tell_is_not_a_difference() -> None:
    (found,) = judge([({**MINE, "hash": "1f"}, (0, 2)), ({**MINE, "hash": UNKNOWN}, (1,))])
    assert found.level == "ok"


def test_the_identity_is_that_of_this_process() -> None:
    mine = identity("MPICH 5")
    assert mine["python"] == platform.python_version() and mine["numpy"] == numpy.__version__
    assert mine["MPI library"] == "MPICH 5" and set(LIKE) <= set(mine)
    assert len(mine["hash of its files"]) == 64
