# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a run costs what it must and no more: failing trials, drains, kills, full disks."""

from __future__ import annotations

import math
import random
import re
import resource
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from aiperf_mpi.results.file.rows import PHASES
from aiperf_mpi.results.judge.judge import judge
from aiperf_mpi.results.output import journal
from aiperf_mpi.results.output.repair import repair
from tests.helpers import launch
from tests.helpers.end_to_end import runs, starts
from tests.helpers.results.agreement import assert_all_agree

pytestmark = pytest.mark.mpi


def test_failing_trials_cost_only_themselves(tmp_path: Path) -> None:
    """The trial of round 2 raises, that of round 3 turns NaN; the replica goes on, and neither earns
    anything. Each is made ready while the one before it trains."""
    sets = ("fault.raise_in_round=2", "fault.nan_in_round=3", "parallel.compile_ahead='on'")
    ended = runs.run_until(
        lambda run: any(record["round"] >= 4 for record in runs.trained(run).values()),
        3,
        tmp_path / "run",
        sets,
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()

    trials = ended.table("trials")
    by_round = {int(r): i for i, r in enumerate(trials["round"]) if math.isfinite(trials["t_start"][i])}
    assert len(by_round) >= 4, "the replica did not go on after the failed trials"
    for number, cause in ((2, "injected fault"), (3, "Diverged")):
        row = by_round[number]
        assert trials["status"][row] == "failed" and cause in trials["cause"][row]
        assert trials["ops_credited"][row] == "0"
        epochs = ended.table("epochs")
        own = epochs["trial_id"] == trials["trial_id"][row]
        assert np.all(epochs["ops_credited"][own] == 0)
    good = [by_round[n] for n in by_round if n not in (2, 3)]
    assert all(trials["ops_credited"][row] == trials["ops"][row] for row in good)

    # A failed trial is not a parent.
    failed = set(trials["trial_id"][trials["status"] == "failed"])
    assert not failed & set(trials["parent_id"])


@pytest.mark.full
def test_time_that_nobody_accounts_for_is_found(tmp_path: Path) -> None:
    """Idle has its own timer: two seconds of sleep outside of every phase break the sum, and the run is
    INVALID."""
    sets = ("fault.untimed_sleep_seconds=2.0", "fault.untimed_sleep_rank=1")
    ended = runs.run(3, tmp_path / "run", sets, seconds=10)
    assert ended.code == 3, ended.text()
    assert ended.lines["status"] == "INVALID" and "V13" in ended.lines["reasons"]
    assert not assert_all_agree(ended.result, out=ended.out, code=ended.code).valid
    ranks = ended.table("ranks")
    phases = np.sum([ranks[f"seconds_{phase}"] for phase in PHASES], axis=0)
    missing = ranks["wall_seconds"] - phases
    assert missing[1] == pytest.approx(2.0, abs=0.3) and abs(missing[0]) < 0.3 and abs(missing[2]) < 0.3


@pytest.mark.parametrize(
    ("mpi", "number"),
    [
        ("mpich", signal.SIGUSR1),
        pytest.param("mpich", signal.SIGINT, marks=pytest.mark.full),
        pytest.param("openmpi", signal.SIGUSR1, marks=pytest.mark.full),
    ],
)
def test_drain(mpi: str, number: signal.Signals, tmp_path: Path) -> None:
    """A signal to the launcher: partial work is recorded, the file judged, exit 4 within 30 s."""
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi} ({launch.launcher(mpi)}): see bin/test")
    folder = tmp_path / "run"
    job = runs.start(3, folder, seconds=600, mpi=mpi)
    _wait_for_epochs(folder, 2)
    sent = time.monotonic()
    job.send_signal(number)
    ended = runs.finish(job, folder, timeout=60)
    assert time.monotonic() - sent < 30
    assert ended.code == 4, ended.text()
    assert ended.lines["end"] == "drained" and ended.lines["class"] == "trial"
    # The judge's and everybody else's words, of one of the three runs.
    once = (mpi, number) == ("mpich", signal.SIGUSR1)
    verdict = assert_all_agree(ended.result, out=ended.out, code=ended.code) if once else judge(ended.result)
    assert verdict.end == "drained" and verdict.valid, verdict.reasons
    with h5py.File(ended.result) as file:
        assert math.isnan(file.attrs["error_final"]), "nothing is validated again after a drain"
        assert number.name in file.attrs["end_cause"]
        assert file.attrs["core_seconds"] < 600


@pytest.mark.parametrize(
    ("mpi", "rank", "number"),
    [
        pytest.param("mpich", 1, signal.SIGTERM, marks=pytest.mark.full),
        pytest.param("openmpi", 2, signal.SIGUSR1, marks=pytest.mark.full),
    ],
)
def test_a_signal_to_another_rank_drains(mpi: str, rank: int, number: signal.Signals, tmp_path: Path) -> None:
    """A trainer or a generator alone gets a signal in the core time: the run ends as by one to all ranks."""
    folder = tmp_path / "run"
    job = runs.start(3, folder, seconds=600, mpi=mpi)
    _wait_for_epochs(folder, 1)
    starts.process_of(job, rank).send_signal(number)
    ended = runs.finish(job, folder, timeout=60)
    assert ended.code == 4 and ended.lines["end"] == "drained", ended.text()
    assert judge(ended.result).valid
    with h5py.File(ended.result) as file:
        assert file.attrs["end_cause"] == f"signal {number.name} to rank {rank} asked the run to drain"


@pytest.mark.full
def test_history_full_drains(tmp_path: Path) -> None:
    sets = ("parallel.history_capacity=16", "parallel.compile_ahead='on'")
    ended = runs.run(3, tmp_path / "run", sets, seconds=180, timeout=250)
    assert ended.code == 4, ended.text()
    assert ended.lines["end"] == "drained" and ended.lines["status"] == "VALID"
    with h5py.File(ended.result) as file:
        assert "history is full" in file.attrs["end_cause"]


@pytest.mark.full
@pytest.mark.parametrize("moment", range(10))
def test_kill_at_a_random_moment(moment: int, tmp_path: Path) -> None:
    """SIGKILL of launcher, ranks and writer: the journal has all that ended 2 s before, the partial file
    opens."""
    rng = random.Random(f"moment {moment}")
    folder = tmp_path / "run"
    job = runs.start(3, folder, seconds=600)
    _wait_for_epochs(folder, 1)
    time.sleep(rng.uniform(0, 15 if moment else 5))

    # What had ended is read from what rank 0 said on its log, at most a second late.
    victims = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    killed = time.time()
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    ended = runs.finish(job, folder, timeout=60)
    told = [
        (_stamp(line), int(number))
        for line in ended.err.splitlines()
        for number in re.findall(r"trial (\d+) (?:done|stopped|failed)", line)
    ]

    run = journal.replay(folder / "journal.jsonl")
    assert {number for stamp, number in told if stamp < killed - 2} <= set(
        runs.ended(run)["trial_id"].tolist()
    )
    with h5py.File(folder / "result.partial.h5") as file:
        assert file.attrs["complete"] == 0 and "trials" in file
    partial = folder / "result.partial.h5"
    verdict = judge(partial) if moment else assert_all_agree(partial)
    assert not verdict.valid and not (folder / "result.h5").exists()


@pytest.mark.full
def test_file_size_limit_in_mid_run(tmp_path: Path) -> None:
    """A journal that may not grow any more ends the run in order, and stays whole."""
    folder = tmp_path / "run"
    # No partial result is rebuilt meanwhile: it would meet the limit before the journal does.
    job = runs.start(3, folder, ("result.partial_seconds=3600",), seconds=600)
    _wait_for_epochs(folder, 1)

    # The limit falls on the writer alone, a little above what it has written.
    ranks = psutil.Process(job.pid).children(recursive=True)
    writer = next(p for p in ranks if "aiperf_mpi.results.output.process" in p.cmdline())
    size = (folder / "journal.jsonl").stat().st_size + 3000
    resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, (size, size))
    ended = runs.finish(job, folder, timeout=200)
    # The result is larger than the journal, so the limit stops it too: no job script may see a good drain.
    assert ended.code == 5, ended.text()
    assert "File too large" in ended.err and "journal.jsonl" in ended.err
    assert ended.lines["end"] == "drained" and not (folder / "result.h5").exists()
    why = ended.lines["why"]
    assert why.startswith("no result file of this run was written: ") and "File too large" in why

    journal_size = (folder / "journal.jsonl").stat().st_size
    run = journal.replay(folder / "journal.jsonl")
    assert journal_size <= size and len(run.epochs) >= 1
    assert (folder / "journal.jsonl").read_bytes().endswith(b"\n")

    # What the last lines tell the user to do gives the result after all.
    assert f"verify --repair {folder}" in ended.err
    assert repair(folder)[0].exists()


def _wait_for_epochs(folder: Path, count: int, timeout: float = 150) -> None:
    """Wait until the journal of a run holds some epochs."""
    limit = time.monotonic() + timeout
    path = folder / "journal.jsonl"
    while time.monotonic() < limit:
        if path.exists() and len(journal.replay(path).epochs) >= count:
            return
        time.sleep(0.2)
    raise TimeoutError(f"{path}: fewer than {count} epochs after {timeout:g} s")


def _stamp(line: str) -> float:
    """The time of a log line, in seconds since 1970."""
    return time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S"))
