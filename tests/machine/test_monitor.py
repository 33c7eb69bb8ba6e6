# SPDX-License-Identifier: Apache-2.0
"""The monitor: samples of this host, power from written counters, its cost, and the number of rows."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from aiperf_mpi.machine.accelerators import DeviceReading, NoAccelerators
from aiperf_mpi.machine.host import Host
from aiperf_mpi.machine.monitor import MAX_ROWS, Monitor, PowerMeter, Probe, Sampler, stride
from aiperf_mpi.machine.rapl import Zone, zones
from aiperf_mpi.results.file import resultfile, tables
from aiperf_mpi.results.file.rows import SAMPLE_ROW, new_row
from aiperf_mpi.results.judge import judge
from tests.helpers.results.example_run import example_run

#: Seconds between two samples by default, and the part of a core that sampling may take.
SECONDS, PART = 30.0, 0.005


def probe(expected: int = 0, counters: tuple[Zone, ...] = (), power: bool = True) -> Probe:
    return Probe(Host(), NoAccelerators("none here"), expected, counters, power)


def row_of(sampler: Sampler) -> np.void:
    """The row of /samples that a run makes of a sampler's values."""
    return new_row(SAMPLE_ROW, **sampler.row())[0]


def silent(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    """A package whose counter wraps at 1 J."""
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    for name, text in (("name", "package-0"), ("energy_uj", "700000"), ("max_energy_range_uj", "1000000")):
        (folder / name).write_text(text)
    (package,), _ = zones(tmp_path)
    return package


# -- rows ------------------------------------------------------------------------------------------


def test_a_sample_of_this_host_is_real() -> None:
    sampler = Sampler(3, probe(), silent)
    sampler.begin()
    # A tenth of a second of work by this process.
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        pass
    sampler.measure(5.0)
    row = row_of(sampler)
    assert (row["node"], row["window"], row["count"], row["devices"], row["t"]) == (3, 0, 1, 0, 5.0)
    assert 0 < row["cpu_percent"] <= 100 and 5 < row["process_percent"] < 150
    assert 0 < row["process_bytes"] < row["memory_bytes"] < psutil.virtual_memory().total
    assert row["net_bytes"] >= 0 and 0 < row["sample_seconds"] < 1
    assert all(math.isnan(row[name]) for name in ("device_percent", "power_watts", "energy_joules"))


def test_energy_by_rapl_across_the_counters_end(zone: Zone) -> None:
    # 0.7 J, 0.2 J (+0.5), 0.9 J (+0.7): 0.5 J in 4 s, then 0.7 J in 2 s.
    sampler = Sampler(0, probe(counters=(zone,)), silent)
    sampler.begin()
    rows = []
    for t, counter in ((4.0, 200_000), (6.0, 900_000)):
        (zone.path / "energy_uj").write_text(str(counter))
        sampler.measure(t)
        rows.append(row_of(sampler))
    assert [row["energy_joules"] for row in rows] == pytest.approx([0.5, 1.2])
    assert [row["power_watts"] for row in rows] == pytest.approx([0.125, 0.35])
    assert [row["window"] for row in rows] == [0, 1] and math.isnan(rows[0]["device_watts"])


def test_several_measurements_make_a_row_that_means_them(zone: Zone) -> None:
    sampler = Sampler(0, probe(counters=(zone,)), silent)
    sampler.begin()
    for t, counter in ((1.0, 800_000), (2.0, 100_000), (3.0, 400_000)):
        (zone.path / "energy_uj").write_text(str(counter))
        sampler.measure(t)
    row = row_of(sampler)
    # 0.1 + 0.3 + 0.3 J in 3 s, also though the counter began anew within the window.
    assert (row["count"], row["t"]) == (3, 3.0)
    assert (row["energy_joules"], row["power_watts"]) == pytest.approx((0.7, 0.7 / 3))
    with pytest.raises(RuntimeError, match="without a measurement"):
        row_of(sampler)


# -- power -----------------------------------------------------------------------------------------


def test_accelerators_count_by_their_counters_else_by_their_power() -> None:
    # The first counts 30 J; the second takes 100 W and then 200 W, in 2 s 300 J.
    meter = PowerMeter(probe(expected=2), silent)
    start = [DeviceReading(watts=9.0, millijoules=1_000), DeviceReading(watts=100.0)]
    end = [DeviceReading(watts=9.0, millijoules=31_000), DeviceReading(watts=200.0)]
    assert meter.read(0.0, start) == (0.0, 0.0)
    assert meter.read(2.0, end) == (330.0, 330.0)


def test_an_accelerator_that_is_not_read_leaves_no_energy(zone: Zone) -> None:
    for devices in ([], [DeviceReading(watts=100.0)], [DeviceReading(watts=100.0), DeviceReading()]):
        meter = PowerMeter(probe(expected=2, counters=(zone,)), [].append)
        assert all(math.isnan(joules) for joules in meter.read(0.0, devices)), devices
    # The processors' energy comes on top of that of all accelerators.
    meter = PowerMeter(probe(expected=1, counters=(zone,)), silent)
    meter.read(0.0, [DeviceReading(watts=100.0)])
    (zone.path / "energy_uj").write_text("900000")
    assert meter.read(1.0, [DeviceReading(watts=100.0)]) == (100.0, pytest.approx(100.2))


def test_the_second_node_of_a_host_measures_no_power(zone: Zone) -> None:
    assert all(
        math.isnan(joules)
        for joules in PowerMeter(probe(counters=(zone,), power=False), silent).read(0.0, [])
    )


def test_a_counter_that_breaks_ends_its_measurement_once(zone: Zone) -> None:
    warnings: list[str] = []
    meter = PowerMeter(probe(counters=(zone,)), warnings.append)
    assert meter.read(0.0, [])[1] == 0.0
    (zone.path / "energy_uj").unlink()
    for t in (1.0, 2.0):
        assert math.isnan(meter.read(t, [])[1])
    assert len(warnings) == 1 and "energy of RAPL is not measured any more" in warnings[0]


class Scripted:
    """An accelerator that reports the given powers one after another."""

    why = ""

    def __init__(self, *watts: float) -> None:
        self._watts = list(watts)

    def describe(self) -> list[dict[str, Any]]:
        return []

    def read(self) -> list[DeviceReading]:
        return [DeviceReading(50.0, 1e9, self._watts.pop(0), 1400.0, 60.0)]


def measured(node: Probe, warn: Callable[[str], None], spoil: Callable[[int], object]) -> np.ndarray:
    """The samples of a node whose measurement k follows `spoil(k)`, as a result stores them."""
    sampler, rows = Sampler(0, node, warn), []
    spoil(0)
    sampler.begin()
    for number in range(1, 4):
        spoil(number)
        sampler.measure(2.0 * number)
        rows.append(row_of(sampler))
    return np.array(rows)


def judged(rows: np.ndarray) -> judge.Verdict:
    """The verdict on a run of one node with these samples."""
    example = example_run(replicas=1, trials_each=2)
    assert example.core_seconds < 6.0
    example.samples = rows
    with resultfile.new_file(tables.build(example.run())) as file:
        return judge.judge_content(resultfile.load(file))


def test_counters_that_break_leave_energy_unknown_and_the_run_valid(zone: Zone) -> None:
    # RAPL fails at the third measurement; an accelerator is read all the time.
    warnings: list[str] = []
    both = Probe(Host(), Scripted(*[75.0] * 4), 1, (zone,))

    def spoil(number: int) -> None:
        text = "none" if number == 3 else str(700_000 + 1000 * number)
        (zone.path / "energy_uj").write_text(text)

    rows = measured(both, warnings.append, spoil)
    assert rows["device_watts"].tolist() == [75.0] * 3 and rows["power_watts"][1] == pytest.approx(75.0005)
    assert math.isnan(rows["power_watts"][2]) and math.isnan(rows["energy_joules"][2]) and len(warnings) == 1
    verdict = judged(rows)
    assert verdict.valid and math.isnan(verdict.energy_joules), verdict.reasons


@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_one_missing_power_leaves_the_run_valid(when: int) -> None:
    # If it is missing at core start, nothing is measured; later a straight line replaces it, or the end is
    # unknown.
    warnings: list[str] = []
    watts = [math.nan if number == when else 100.0 for number in range(4)]
    rows = measured(Probe(Host(), Scripted(*watts), 1, ()), warnings.append, lambda number: None)
    assert np.isfinite(rows["energy_joules"]).tolist() == [when and number != when for number in (1, 2, 3)]
    assert len(warnings) == (when == 0) and all(
        "neither energy nor power at core start" in text for text in warnings
    )
    verdict = judged(rows)
    assert verdict.valid, verdict.reasons
    # Core stop is at 5.5 s: 550 J, also across the gap.
    assert (
        math.isnan(verdict.energy_joules) if when in (0, 3) else verdict.energy_joules == pytest.approx(550.0)
    )


def test_an_interface_that_goes_away_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 kB are sent on each of two interfaces, the second disappears with its 9 kB, and comes again from 0
    # with 4 kB.
    amounts = [{"a": 1000, "b": 8000}, {"a": 2000, "b": 9000}, {"a": 2500}, {"a": 2500, "b": 4000}]

    def card(amount: int) -> SimpleNamespace:
        return SimpleNamespace(bytes_sent=amount, bytes_recv=0)

    monkeypatch.setattr(
        "psutil.net_io_counters",
        lambda pernic: {name: card(n) for name, n in amounts.pop(0).items()} | {"lo": card(7)},
    )
    rows = measured(probe(), silent, lambda number: None)
    assert rows["net_bytes"].tolist() == [2000.0, 2500.0, 2500.0]
    verdict = judged(rows)
    assert verdict.valid, verdict.reasons


def test_a_host_that_hides_its_counters_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(*arguments: object, **named: object) -> None:
        raise NotImplementedError("there is no /proc/diskstats")

    monkeypatch.setattr("psutil.disk_io_counters", hidden)
    rows = measured(probe(), silent, lambda number: None)
    assert np.isnan(rows["read_bytes"]).all() and np.isfinite(rows["cpu_percent"]).all()

    # Not even its processors: every column of the host is unknown, with one warning.
    warnings: list[str] = []
    monkeypatch.setattr("psutil.cpu_times", hidden)
    rows = measured(probe(), warnings.append, lambda number: None)
    assert np.isnan(rows["cpu_percent"]).all() and np.isnan(rows["memory_bytes"]).all() and len(warnings) == 1
    verdict = judged(rows)
    assert verdict.valid, verdict.reasons


# -- the thread ------------------------------------------------------------------------------------


def test_the_thread_measures_on_time_and_at_the_end() -> None:
    # First at 0.1 s, then every 0.2 s, two measurements a row: rows at 0.3 s, 0.7 s, and what is left at the
    # end.
    rows: list[tuple[str, dict[str, float]]] = []
    start = time.monotonic()
    monitor = Monitor(
        Sampler(0, probe(), silent),
        lambda: time.monotonic() - start,
        0.2,
        2,
        0.1,
        lambda row: rows.append((threading.current_thread().name, row)),
    )
    monitor.start()
    time.sleep(1.0)
    monitor.finish()
    threads, values = zip(*rows, strict=True)
    assert (
        len(rows) >= 3 and set(threads[:-1]) == {"monitor"} and threads[-1] == threading.current_thread().name
    )
    assert [row["window"] for row in values] == list(range(len(rows)))
    assert all(row["count"] == 2 for row in values[:-1]) and values[0]["t"] >= 0.3
    assert np.all(np.diff([row["t"] for row in values]) > 0) and 1.0 <= values[-1]["t"] < 3.0
    assert "monitor" not in {thread.name for thread in threading.enumerate()}


def test_sampling_costs_less_than_a_half_percent_of_a_core() -> None:
    sampler = Sampler(0, probe(), silent)
    sampler.begin()
    spent = time.thread_time()
    for number in range(100):
        sampler.measure(1.0 + number)
        row_of(sampler)
    each = (time.thread_time() - spent) / 100
    print(f"{each * 1e3:.2f} ms of CPU time a sample: {each / SECONDS:.5%} of a core at one in {SECONDS:g} s")
    assert each / SECONDS < PART


@pytest.mark.parametrize(
    ("nodes", "time_limit", "every"),
    [
        (1, 86_400.0, 1),
        # 10,000 nodes x 100 samples in 50 minutes fit; 720 samples each in 6 hours are 7.2 million: 7 a row.
        (10_000, 3000.0, 1),
        (10_000, 21_600.0, 7),
        (100_000, 3600.0, 12),
    ],
)
def test_large_machines_have_no_more_than_a_million_rows(nodes: int, time_limit: float, every: int) -> None:
    assert stride(nodes, time_limit, SECONDS) == every
    assert nodes * time_limit / (every * SECONDS) <= MAX_ROWS
