# SPDX-License-Identifier: Apache-2.0
"""A result of the size of a large machine's: the judge takes seconds, and little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aiperf_mpi.results import resultfile, writer
from tests.results.example_run import example_run

#: Judges the file named on its command line; says how long it took in s, its peak memory in bytes, and the outcome.
#: VmHWM is of this program alone; getrusage's ru_maxrss also holds that of the process which started it, however large.
PROBE = """
import json, pathlib, sys, time
start = time.monotonic()
from aiperf_mpi.results.judge import judge
verdict = judge(sys.argv[1])
status = pathlib.Path("/proc/self/status").read_text()
memory = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps([time.monotonic() - start, memory, verdict.valid, verdict.trials, [str(r) for r in verdict.reasons]]))
"""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("replicas", "seconds"), [(10, 10), pytest.param(1000, 20, marks=pytest.mark.full)], ids=["100 trials", "10,000"]
)
def test_verify_takes_seconds_and_little_memory(replicas: int, seconds: float, tmp_path: Path) -> None:
    # Ten trials of 60 epochs on each replica: with a thousand of them 10,000 trials and 600,000 rows of epochs.
    sets = ("train.epochs=60", "train.round_epochs=[60]")
    example = example_run(replicas=replicas, trials_each=10, epochs_each=60, sets=sets)
    path = tmp_path / "result.h5"
    resultfile.write(path, writer.final_image(example.run()))
    line = [sys.executable, "-c", PROBE, str(path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=True)
    taken, memory, valid, trials, reasons = json.loads(done.stdout)
    print(f"{trials} trials: {taken:.1f} s, {memory / 1e9:.2f} GB")
    assert valid, reasons
    assert trials == 10 * replicas
    assert taken < seconds and memory < 2e9
