# SPDX-License-Identifier: Apache-2.0
"""Checks that hang, raise or answer: each becomes a finding, and none holds up the others."""

from __future__ import annotations

import threading
import time

import pytest

from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.site import bounded

FINE = Finding("ok", "fine", "as it should be")


def test_checks_answer_in_their_order_whatever_each_does() -> None:
    never = threading.Event()

    def hangs() -> tuple[Finding, ...]:
        never.wait(30)
        return (FINE,)

    def raises() -> tuple[Finding, ...]:
        raise OSError(5, "Input/output\nerror")

    started = time.monotonic()
    found = bounded.findings({"hangs": hangs, "raises": raises, "fine": lambda: (FINE,)}, 0.3)
    waited = time.monotonic() - started
    never.set()

    # The deadline is one for all: 0.3 s, not 0.3 s for each.
    assert 0.3 <= waited < 3
    assert [finding.subject for finding in found] == ["hangs", "raises", "fine"]
    assert [finding.level for finding in found] == ["fail", "fail", "ok"]
    assert "no answer within 0.3 s" in found[0].text and found[0].remedy
    assert "OSError" in found[1].text and "\n" not in found[1].text and found[1].remedy


def test_two_checks_that_hang_share_the_deadline() -> None:
    never = threading.Event()

    def hangs() -> tuple[Finding, ...]:
        never.wait(30)
        return ()

    started = time.monotonic()
    found = bounded.findings({name: hangs for name in "abcde"}, 0.2)
    assert time.monotonic() - started < 3 and [finding.level for finding in found] == ["fail"] * 5
    never.set()


def test_a_check_may_find_nothing_or_several_things() -> None:
    found = bounded.findings({"none": lambda: (), "two": lambda: (FINE, FINE)}, 5)
    assert found == (FINE, FINE)


def test_a_check_that_ends_its_thread_is_a_failure() -> None:
    def exits() -> tuple[Finding, ...]:
        raise SystemExit("a library ends the process")

    (found,) = bounded.findings({"exits": exits}, 5)
    assert found.level == "fail" and "SystemExit: a library ends the process" in found.text


def test_checks_are_made_also_where_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def raises() -> tuple[Finding, ...]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    found = bounded.findings({"raises": raises, "fine": lambda: (FINE,)}, 5)
    assert [finding.level for finding in found] == ["fail", "ok"]
