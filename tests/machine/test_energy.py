# SPDX-License-Identifier: Apache-2.0
"""Energy by hand: counters that wrap, trapezoids, the energy of the core time over hosts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aiperf_mpi.machine.energy import EnergyCounter, Integral, core_energy, counted, energy_at


@pytest.mark.parametrize(
    ("before", "after", "span", "counts"),
    [
        (100, 350, 1000, 250),
        (100, 100, 1000, 0),
        # It went 1000 - 900 = 100 to its span and 40 beyond.
        (900, 40, 1000, 140),
        # A package of 65,532,610,987 counts at 65 kJ, 200 J before its end and 300 J after it: 500 J.
        (65_332_610_987, 300_000_000, 65_532_610_987, 500_000_000),
    ],
)
def test_a_counter_is_read_across_its_end(before: int, after: int, span: int, counts: int) -> None:
    assert counted(before, after, span) == counts


@pytest.mark.parametrize(("before", "after", "span"), [(5, 4, 0), (900, 40, 800), (1000, 999, 1000)])
def test_a_counter_that_goes_back_is_refused(before: int, after: int, span: int) -> None:
    with pytest.raises(ValueError, match=f"from {before} to {after}"):
        counted(before, after, span)


def test_counts_add_up_over_several_ends() -> None:
    # 700 of 1000, then ends at 200 (500 more), 900 (700), 100 (200): 0, 500, 1200, 1400 counts of 2 J.
    count = EnergyCounter(unit=2.0, span=1000)
    assert [count.add(value) for value in (700, 200, 900, 100)] == [0.0, 1000.0, 2400.0, 2800.0]


def test_power_is_integrated_by_trapezoids() -> None:
    # 100 W to 300 W in 10 s: 2000 J; then 300 W for 5 s: 1500 J; then to 0 W in 2 s: 300 J.
    integral = Integral()
    readings = ((3.0, 100.0), (13.0, 300.0), (18.0, 300.0), (20.0, 0.0))
    assert [integral.add(t, watts) for t, watts in readings] == [0.0, 2000.0, 3500.0, 3800.0]


def test_the_energy_at_core_stop_is_interpolated() -> None:
    # 100 W for 30 s, then 200 W for 30 s: at 45 s 3000 + 15 x 200 = 6000 J; at 15 s half of 3000.
    t, energy = np.array([30.0, 60.0]), np.array([3000.0, 9000.0])
    assert energy_at(t, energy, 45.0) == 6000.0 and energy_at(t, energy, 15.0) == 1500.0
    # Half a second after the last sample, within a hundredth of the time: 9000 + 0.5 x 200.
    assert energy_at(t, energy, 60.5) == 9100.0
    # A second and more than a hundredth is not known.
    assert math.isnan(energy_at(t, energy, 61.0))
    assert math.isnan(energy_at(t, np.full(2, math.nan), 45.0)) and math.isnan(
        energy_at(t[:0], energy[:0], 45.0)
    )


def samples(*rows: tuple[int, float, float]) -> dict[str, np.ndarray]:
    """Columns of (node, t, energy)."""
    node, t, energy = np.array(rows).reshape(-1, 3).T
    return {"node": node.astype(int), "t": t, "energy_joules": energy}


def test_every_node_that_measured_counts_whatever_its_host_is_called() -> None:
    # 100 W and 50 W for 10 s; equal host names halve nothing.
    rows = samples((0, 12, 1200), (1, 12, 600))
    for names in ({0: "a", 1: "b"}, {0: "a", 1: "a"}):
        assert core_energy(rows, names, 10.0, ["RAPL"])[0] == 1500.0


def test_a_node_without_power_is_excused_by_its_host_alone() -> None:
    # Node 0 takes 100 W, node 2 50 W; node 1 is on node 0's host and measures no power. At 10 s: 1000 + 500
    # J.
    rows = samples((0, 12, 1200), (1, 12, math.nan), (2, 6, 300), (2, 12, 600))
    hosts = {-1: "a", 0: "a", 1: "a", 2: "b"}
    assert core_energy(rows, hosts, 10.0, ["RAPL"]) == (1500.0, "level 0: device only: RAPL")

    joules, text = core_energy(rows, {**hosts, -1: "login"}, 10.0, ["RAPL"])
    assert joules == 1500.0 and text == "level 0: device only: RAPL; without login, the coordinator's host"
    joules, text = core_energy(rows, {**hosts, 3: "c"}, 10.0, ["RAPL", "no permission"])
    assert math.isnan(joules) and text == "not measured on 1 of 3 hosts, first c: RAPL; no permission"
    joules, text = core_energy(samples(), hosts, 10.0, [])
    assert math.isnan(joules) and text == "not measured: there are no samples"
