# SPDX-License-Identifier: Apache-2.0
"""A message of a refusal is divided into what is wrong and what to do."""

from __future__ import annotations

import pytest

from aiperf_mpi.planning.finding import Finding, first_failure, refusal, warnings


@pytest.mark.parametrize(
    ("message", "text", "remedy"),
    [
        ("--output /x: not empty; name another", "--output /x: not empty", "name another"),
        ("a; b; do this", "a; b", "do this"),
        (
            "no library (cannot load; /x: none). Install one",
            "no library (cannot load; /x: none)",
            "Install one",
        ),
        ("there is 1 rank. Type: mpiexec -n N x", "there is 1 rank", "Type: mpiexec -n N x"),
        ("version 5.0.2 is wrong", "version 5.0.2 is wrong", "correct what the message names"),
        ("wrong; do this (or that; or more)", "wrong", "do this (or that; or more)"),
    ],
)
def test_a_message_and_its_remedy(message: str, text: str, remedy: str) -> None:
    assert refusal("MPI", message) == Finding("fail", "MPI", text, remedy)


def test_the_first_failure_and_the_warnings() -> None:
    fine, warn, bad = Finding("ok", "a", "b"), Finding("warn", "a", "b", "c"), Finding("fail", "a", "d", "e")
    assert first_failure([fine, warn, bad]) == "d; e" and first_failure([fine]) is None
    assert warnings([bad, warn, fine]) == (warn,)
