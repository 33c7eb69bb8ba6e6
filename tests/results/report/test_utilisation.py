# SPDX-License-Identifier: Apache-2.0
"""The report's sections about the use of the machine, against numbers derived from the example by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.results.evidence import samples
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.attributes import core_stop
from aiperf_mpi.results.file.rows import SAMPLE_ROW
from aiperf_mpi.results.file.tables import build
from aiperf_mpi.results.judge.judge import judge_file
from aiperf_mpi.results.report import pictures
from aiperf_mpi.results.report.text import text_report
from aiperf_mpi.results.report.utilisation import USE
from aiperf_mpi.results.report.verdict import verdict_json
from tests.helpers.results.changes import written
from tests.helpers.results.example_run import Example, example_run


def section(example: Example, folder: Path, title: str) -> str:
    """Return a section of an example's report with single blanks."""
    text = text_report(written(example, folder))
    body = re.search(rf"^{title}\n(.*?)(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert body is not None, text
    return re.sub(r" +", " ", body.group(1))


def test_means_ranges_and_totals(tmp_path: Path) -> None:
    # Node 0 takes 200 W and node 1 210 W for 9 s each. Each reads 1 MB a second and writes a tenth: 18 and
    # 1.8 MB. Ten samples of a millisecond in 18 node seconds: 0.0556 % of a core.
    text = " ".join(section(example_run(), tmp_path, "Utilisation").split())
    assert "measured power 205.0 200.0 210.0 W a node" in text
    assert "host's CPUs 50.0 50.0 50.0 %" in text and "accelerators' memory 6.0 6.0 6.0 GB a node" in text
    assert "0.018 GB read from disks, 0.002 GB written to disks" in text
    assert "unknown amount through InfiniBand ports" in text
    assert "10 samples of 2 nodes took 0.0556% of a core" in text


def test_windows_count_by_their_length(tmp_path: Path) -> None:
    # Node 0: 2 s at 90 % and the other 7 s at 0 %; node 1 at 0 %: 180 / 18 = 10 %.
    example = example_run()
    example.samples["cpu_percent"] = 0.0
    example.samples["cpu_percent"][0] = 90.0
    assert "host's CPUs 10.0 0.0 90.0 %" in section(example, tmp_path, "Utilisation")

    # The picture, and result.json, by the same mean: over the rows it would be 9 %.
    result, verdict = judge_file(tmp_path / "result.h5")
    assert "CPUs: mean 10.0 %" in pictures.utilisation(Evidence(result), verdict)
    means = json.loads(verdict_json(verdict))["utilisation"]
    assert means["cpu_percent"] == pytest.approx(10.0, rel=1e-12) and set(means) == set(samples.USED)
    assert set(samples.USED) == {name for name, *_ in USE}


def test_nodes_of_one_host_have_its_counters_once(tmp_path: Path) -> None:
    example = example_run()
    example.ranks["hostname"] = b"node0"
    assert "0.009 GB read from disks" in section(example, tmp_path, "Utilisation")


def test_what_is_not_read_says_so(tmp_path: Path) -> None:
    example = example_run()
    for name in ("device_percent", "device_memory_bytes", "device_mhz", "device_celsius", "device_watts"):
        example.samples[name] = np.nan
    assert "accelerators not read" in section(example, tmp_path, "Utilisation")
    assert (
        json.loads(verdict_json(judge_file(tmp_path / "result.h5")[1]))["utilisation"]["device_percent"]
        is None
    )
    example.samples = example.samples[:0]
    assert "no samples" in section(example, tmp_path, "Utilisation")
    assert json.loads(verdict_json(judge_file(tmp_path / "result.h5")[1]))["utilisation"] == {}


def test_places_and_clocks_of_ranks(tmp_path: Path) -> None:
    # Rank 4 of the example is 4 ms off, known to 0.01 ms.
    text = section(example_run(), tmp_path, "Places and clocks of ranks")
    assert re.search(r"^ 4 node1 0-3 0 4\.000 0\.010", text, re.MULTILINE), text


def test_energy_is_that_of_the_core_time(tmp_path: Path) -> None:
    # 8.5 s of 200 W and 210 W: 3485 J, although the last samples end after core stop.
    text = section(example_run(), tmp_path, "Energy")
    assert "3,485 J" in text and "410.0 W" in text and "level 0: device only" in text


# -- the table -------------------------------------------------------------------------------------


def test_samples_are_ordered_and_end_after_core_stop() -> None:
    # Sent by node 1 first, and going on after core stop, as drained ranks may.
    example = example_run()
    late = np.zeros(2, SAMPLE_ROW)
    late["node"], late["t"], late["window"] = 0, (11.0, 13.0), (5, 6)
    example.samples = np.concatenate([example.samples[5:], late, example.samples[:5]])
    rows = build(example.run()).tables["samples"]
    assert rows["node"].tolist() == [0] * 5 + [1] * 5 and rows["t"].tolist() == [2, 4, 6, 8, 9] * 2


@pytest.mark.parametrize(
    ("start", "seconds", "stop"),
    [
        ("2026-01-02T03:04:05Z", 3600.0, "2026-01-02T04:04:05.000+00:00"),
        ("2026-12-31T23:59:59+00:00", 1.2345, "2027-01-01T00:00:00.234+00:00"),
        ("", 5.0, ""),
    ],
)
def test_core_stop_follows_from_start_and_length(start: str, seconds: float, stop: str) -> None:
    assert core_stop(start, seconds) == stop
