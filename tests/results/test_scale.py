# SPDX-License-Identifier: Apache-2.0
"""A result of the size of a large machine's: the judge takes seconds, and little memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.results.file import resultfile, tables
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.output import process
from tests.helpers.results.example_run import example_run

#: Judges the file named on its command line; says how long it took in s, its peak memory in bytes, and the
#: outcome. Trials of 60 epochs; random morphs of morphs, thousands deep, grow beyond the networks of the
#: demo's search.
SETS = (
    "train.epochs=60",
    "train.round_epochs=[60]",
    "search.max_units=300",
    "search.max_parameters=1000000000",
)

#: VmHWM is of this program alone; getrusage's ru_maxrss also holds that of the process which started it,
#: however large.
PROBE = """
import json, pathlib, sys, time
start = time.monotonic()
from aiperf_mpi.results.judge.judge import judge
verdict = judge(sys.argv[1])
status = pathlib.Path("/proc/self/status").read_text()
memory = int(status.split("VmHWM:")[1].split()[0]) * 1024
reasons = [str(reason) for reason in verdict.reasons]
print(json.dumps([time.monotonic() - start, memory, verdict.valid, verdict.trials, reasons]))
"""


#: The same of `report FILE --html OUT`.
PAGE = """
import json, pathlib, sys, time
start = time.process_time()
from aiperf_mpi.__main__ import main
code = main(["report", sys.argv[1], "--html", sys.argv[2]])
memory = int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps([time.process_time() - start, memory, code]))
"""


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_page_of_a_large_run_takes_a_minute(tmp_path: Path) -> None:
    # 10,000 trials and 600,000 rows of epochs; CPU seconds, so that other work on the machine does not count.
    example = example_run(replicas=1000, trials_each=10, epochs_each=60, sets=SETS)
    path, page = tmp_path / "result.h5", tmp_path / "page.html"
    hdf5.write(path, process.final_image(example.run()))
    line = [sys.executable, "-c", PAGE, str(path), str(page)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=1200, check=True)
    taken, memory, code = json.loads(done.stdout)
    print(f"{taken:.1f} CPU s, {memory / 1e9:.2f} GB, {page.stat().st_size / 1e6:.2f} MB")
    assert code == 0 and "cannot be shown" not in page.read_text(encoding="utf-8")
    assert taken < 60 and memory < 2e9 and page.stat().st_size < 3_000_000


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("replicas", "seconds"),
    [(10, 10), pytest.param(1000, 20, marks=pytest.mark.full)],
    ids=["100 trials", "10,000"],
)
def test_verify_takes_seconds_and_little_memory(replicas: int, seconds: float, tmp_path: Path) -> None:
    # Ten trials of 60 epochs on each replica: with a thousand of them 10,000 trials and 600,000 rows of
    # epochs.
    example = example_run(replicas=replicas, trials_each=10, epochs_each=60, sets=SETS)
    path = tmp_path / "result.h5"
    hdf5.write(path, process.final_image(example.run()))
    line = [sys.executable, "-c", PROBE, str(path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=True)
    taken, memory, valid, trials, reasons = json.loads(done.stdout)
    print(f"{trials} trials: {taken:.1f} s, {memory / 1e9:.2f} GB")
    assert valid, reasons
    assert trials == 10 * replicas
    assert taken < seconds and memory < 2e9


@pytest.mark.full
def test_a_million_samples_take_seconds_and_little_room() -> None:
    # 10,000 nodes with 100 windows each, in the order in which they arrive: by time.
    example = example_run()
    rows = np.repeat(example.samples[:1], 10_000 * 100)
    rows["node"], rows["window"] = np.tile(np.arange(10_000), 100), np.repeat(np.arange(100), 10_000)
    rows["t"] = 0.09 * (rows["window"] + 1)
    rows["energy_joules"] = rows["power_watts"] * rows["t"]
    example.samples = rows

    start = time.process_time()
    content = tables.build(example.run())
    with resultfile.new_file(content) as file:
        size = len(resultfile.seal(file, complete=False))
        result = resultfile.load(file)
    verdict = judge.judge_content(replace(result, attributes=result.attributes | {"n_nodes": 10_000}))
    taken = time.process_time() - start
    print(f"{taken:.1f} s, {size / 2**20:.0f} MiB")
    assert [finding.wrong for finding in verdict.findings if finding.id == "I17"] == [()]
    # Every node takes 200 W for 8.5 s.
    assert verdict.energy_joules == pytest.approx(10_000 * 200 * 8.5)
    assert taken < 20 and size < 200 * 2**20


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_two_thousand_trials_take_a_minute_in_every_command(tmp_path: Path) -> None:
    # 100 trials on each of 20 replicas, 20 epochs each; along their ancestors most have more than 20 morphs.
    sets = (*SETS, "train.round_epochs=[20]")
    example = example_run(replicas=20, trials_each=100, epochs_each=20, sets=sets)
    path, page = tmp_path / "result.h5", tmp_path / "page.html"
    hdf5.write(path, process.final_image(example.run()))
    for words in (["verify"], ["report"], ["compare", str(path)], ["report", "--html", str(page)]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        line = [sys.executable, "-m", "aiperf_mpi", *words, str(path)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{words[0]}: {taken:.1f} CPU s, {after.ru_maxrss / 1e6:.2f} GB")
        assert done.returncode == 0 and "INVALID" not in done.stdout, done.stdout[:2000] + done.stderr
        assert taken < 60 and after.ru_maxrss < 1e6
