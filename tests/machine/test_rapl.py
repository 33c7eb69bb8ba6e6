# SPDX-License-Identifier: Apache-2.0
"""RAPL's counters from a tree like the kernel's, on a server with two packages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiperf_mpi.machine.rapl import zones


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two packages with memory and cores, the platform, and the first package's second view."""
    for zone, name, energy in (
        ("intel-rapl:0", "package-0", 1_000),
        ("intel-rapl:0:0", "core", 300),
        ("intel-rapl:0:1", "dram", 200),
        ("intel-rapl:1", "package-1", 5_000),
        ("intel-rapl:1:0", "dram", 400),
        ("intel-rapl:2", "psys", 9_000),
        ("intel-rapl-mmio:0", "package-0", 1_000),
    ):
        folder = tmp_path / zone
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{energy}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
    return tmp_path


def test_packages_and_their_memory_count_once(tree: Path) -> None:
    counters, why = zones(tree)
    assert [zone.name for zone in counters] == ["package-0", "dram", "package-1", "dram"] and why == ""
    assert [zone.read() for zone in counters] == [1_000, 200, 5_000, 400]
    assert {zone.span for zone in counters} == {262_143_328_850}


def test_all_are_read_or_none(tree: Path) -> None:
    (tree / "intel-rapl:1" / "energy_uj").write_text("")
    counters, why = zones(tree)
    assert counters == () and "intel-rapl:1 cannot be read" in why


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_root_alone_may_read_says_so(tree: Path) -> None:
    (tree / "intel-rapl:0" / "energy_uj").chmod(0)
    assert zones(tree) == ((), f"RAPL: {tree}/intel-rapl:0/energy_uj may not be read by this user")


def test_a_host_without_counters_says_so(tmp_path: Path) -> None:
    assert zones(tmp_path / "none") == ((), f"RAPL: {tmp_path}/none shows no processor package")
