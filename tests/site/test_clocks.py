# SPDX-License-Identifier: Apache-2.0
"""Wall clocks that differ by more than a second and more than the measurement's error are a warning."""

from __future__ import annotations

from aiperf_mpi.site.clocks import HostClock, judge

HERE = HostClock("n0", 0.0, 0.0)


def test_clocks_that_agree() -> None:
    assert judge([HERE]).text == "one host has one clock"
    found = judge([HERE, HostClock("n1", -0.02, 0.001)])
    assert (found.level, found.text) == ("ok", "within 0.021 s on 2 hosts")


def test_clocks_that_differ_are_named_the_worst_first() -> None:
    found = judge([HERE, HostClock("n1", 1.5, 0.1), HostClock("n2", -3600.0, 0.1), HostClock("n3", 0.5, 0.1)])
    assert (found.level, found.text) == (
        "warn",
        "wall clocks differ from that of n0: n2 by -3600.0 s, n1 by +1.5 s",
    )
    assert "NTP" in found.remedy


def test_an_uncertain_measurement_is_no_warning() -> None:
    # 1.5 s with an error of up to 0.6 s may be 0.9 s.
    assert judge([HERE, HostClock("n1", 1.5, 0.6)]).level == "ok"


def test_many_wrong_clocks_are_one_line() -> None:
    found = judge([HERE, *(HostClock(f"n{n}", 60.0 + n, 0.1) for n in range(1, 1000))])
    assert found.text.count(" by ") == 4 and "and 995 more hosts" in found.text
