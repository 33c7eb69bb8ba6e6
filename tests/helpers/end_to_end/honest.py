# SPDX-License-Identifier: Apache-2.0
"""Honest runs of every kind, which the judge must accept, or refuse for what truly went wrong.

As a program it makes them all, or those that are named, and prints a table:

    python -m tests.helpers.end_to_end.honest FOLDER [NAME ...]
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from aiperf_mpi.data.manifest import JPEG
from aiperf_mpi.results.judge.judge import Verdict, judge
from aiperf_mpi.results.output.repair import REPAIRED, repair
from tests.helpers import launch
from tests.helpers.end_to_end import runs
from tests.helpers.packed import write_packed

#: Core seconds of a run. On two cores a compilation takes some 3 s.
SECONDS = 15.0

#: Nodes of two ranks on one host.
NODES = ("parallel.ranks_per_node=2",)

#: Steps in parts, as a device may use little memory. A step of 32 images takes some 700 kB.
PARTS = ("parallel.memory_limit=500000", "search.max_morphs=1")

#: The next candidate is prepared while the present one trains.
AHEAD = ("parallel.compile_ahead=on",)

DIGITS = ("data.name=digits", "data.classes=10", "data.train_images=256", "data.val_images=60")

#: What goes wrong on replica 0: a trial raises, another diverges; a candidate has a false count.
FAULTS = ("fault.raise_in_round=1", "fault.nan_in_round=3")
TAMPER = ("fault.tamper_in_round=2",)


#: A run that was killed has no rows of its ranks, and no whole time.
KILLED = ("I03", "V11", "V13", "V21")


@dataclass(frozen=True)
class Honest:
    """A run: its ranks and settings, how it ends, and how it is judged.

    Attributes:
        drain, kill: seconds after its first epoch at which it gets a signal, 0 for none.
        early: the seconds count from the start of the core time.
        repaired: the result is made of its journal.
        busy: processes that keep a core each busy.
        slow: seconds that each batch comes late.
        packed: it trains on packed JPEG pictures.
        reasons: identifiers of the verdict's reasons.
    """

    name: str
    ranks: int = 3
    sets: tuple[str, ...] = ()
    mpi: str = "mpich"
    seconds: float = SECONDS
    drain: float = 0.0
    kill: float = 0.0
    early: bool = False
    repaired: bool = False
    busy: int = 0
    slow: float = 0.0
    packed: bool = False
    reasons: tuple[str, ...] = field(default=())


RUNS = (
    *(
        Honest(f"{ranks} ranks, {mpi}", ranks, NODES if ranks > 4 else (), mpi, 5.0 * ranks)
        for mpi in launch.ENVIRONMENTS
        for ranks in (2, 3, 4, 5, 7)
    ),
    *(Honest(f"in parts, {mpi}", 3, PARTS, mpi) for mpi in launch.ENVIRONMENTS),
    *(Honest(f"teams, {mpi}", 5, runs.TEAMS, mpi, 20.0) for mpi in launch.ENVIRONMENTS),
    Honest("teams, a slow loader", 5, runs.TEAMS, seconds=20.0, slow=0.02),
    Honest("two devices", 3, ("parallel.host_devices=2",)),
    Honest("drained early", 3, drain=0.5, early=True, reasons=("I15",)),
    *(Honest(f"drained, {mpi}", 3, (), mpi, drain=5.0) for mpi in launch.ENVIRONMENTS),
    Honest("drained, teams", 5, runs.TEAMS, drain=5.0),
    *(
        Honest(f"killed and repaired, {mpi}", 3, (), mpi, kill=4.0, repaired=True, reasons=KILLED)
        for mpi in launch.ENVIRONMENTS
    ),
    Honest("ended and repaired", 3, repaired=True),
    Honest("drained and repaired", 3, drain=3.0, repaired=True),
    Honest("busy cores", 3, busy=3, seconds=20.0),
    Honest("busy cores, 2 nodes", 5, NODES, busy=3, seconds=20.0),
    Honest("a slow loader", 3, DIGITS, slow=0.05),
    Honest("a slow loader of packed pictures", 3, slow=0.02, packed=True, seconds=20.0),
    Honest("a slow loader, ahead", 3, (*DIGITS, *AHEAD), slow=0.1, seconds=20.0),
    Honest("failed trials", 3, FAULTS),
    Honest("a rejected candidate", 3, TAMPER),
    Honest("failed trials, ahead", 4, (*AHEAD, *FAULTS, *TAMPER), seconds=20.0),
    *(Honest(f"ahead, {mpi}", 3, AHEAD, mpi, 20.0) for mpi in launch.ENVIRONMENTS),
    Honest("ahead, drained", 3, AHEAD, drain=10.0),
    Honest("ahead, 2 nodes, busy cores", 5, (*NODES, *AHEAD), busy=2, seconds=20.0),
    Honest("inherited weights", 3, ("model.initial_weight=inherit",)),
    Honest("one step in flight", 3, ("train.in_flight_steps=1",)),
    Honest("many steps in flight, long epochs", 3, ("train.in_flight_steps=16", "data.train_images=65536")),
)


def packed_settings(folder: Path) -> tuple[str, ...]:
    """Pack noise around a colour for each of four classes; return the settings of a run on it."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (np.arange(count) % 4).astype(np.int32)
        noise = rng.integers(0, 64, (count, 24, 24, 3), dtype=np.uint8)
        return noise + (labels * 48).astype(np.uint8)[:, None, None, None], labels

    write_packed(folder, {"train": split(256), "val": split(60)}, 4, JPEG, shard_images=64)
    return (
        "data.name='images'",
        f"data.path='{folder}'",
        "data.channels=3",
        "data.augmentation=auto",
        "data.workers=2",
    )


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Keep `count` cores busy."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def judged(run: Honest, folder: Path) -> Verdict:
    """Make a run in a new folder, and return the verdict on it; on a busy machine it may need more time to
    train anything."""
    verdict = judge(make(run, folder))
    for factor in (3, 9):
        if run.drain == 0 and verdict.reason_ids == ("I15",):
            verdict = judge(
                make(replace(run, seconds=factor * run.seconds), folder.with_name(f"{folder.name}-{factor}"))
            )
    return verdict


def make(run: Honest, folder: Path) -> Path:
    """Make a run in a new folder, and return its result file; a result that is there already stays."""
    result = folder / (REPAIRED if run.repaired else "result.h5")
    if result.exists():
        return result
    sets = run.sets + (packed_settings(folder.with_name(f"{folder.name}-set")) if run.packed else ())
    seconds = 3600.0 if run.drain or run.kill else run.seconds
    words = runs.arguments(folder, sets, seconds=seconds)
    environment = dict(runs.QUICK_COMPILER)
    if run.slow:
        words[:2] = ["-m", "tests.helpers.end_to_end.throttled"]
        environment["AIPERF_TEST_BATCH_SECONDS"] = str(run.slow)
    with busy_cores(run.busy):
        job = launch.start(run.ranks, words, mpi=run.mpi, env=environment)
        if run.drain or run.kill:
            wait_for(job, folder / "journal.jsonl", '"kind":"start"' if run.early else '"kind":"epoch"')
            time.sleep(run.drain or run.kill)
        if run.drain:
            job.send_signal(signal.SIGUSR1)
        if run.kill:
            victims = launch.processes(job)
            for victim in victims:
                victim.kill()
        ended = launch.finish(job, 240)
    if run.repaired:
        (folder / "result.h5").unlink(missing_ok=True)
        repair(folder)
    assert result.is_file(), f"{ended.stdout}\n{ended.stderr}"
    return result


def wait_for(job: subprocess.Popen[str], journal: Path, text: str) -> None:
    """Wait until the journal of a run has a text."""
    limit = time.monotonic() + 300
    while job.poll() is None and time.monotonic() < limit:
        if journal.exists() and text in journal.read_text(errors="replace"):
            return
        time.sleep(0.1)


def unexpected(run: Honest, verdict: Verdict) -> str:
    """Return how a verdict differs from the one that the run must have, "" if it does not."""
    if verdict.reason_ids == run.reasons and verdict.valid == (not run.reasons):
        return ""
    return f"{verdict.reason_ids} instead of {run.reasons}: {verdict.reasons}"


def main() -> int:
    """Make the runs, and print how each was judged."""
    parser = argparse.ArgumentParser(description="Make honest runs, and print how each is judged.")
    parser.add_argument("folder", type=Path, help="where their folders are made")
    parser.add_argument("names", nargs="*", metavar="name", help="of the runs; without one, all")
    chosen, wrong = parser.parse_args(), 0
    if unknown := set(chosen.names) - {run.name for run in RUNS}:
        parser.error(f"no run has the name {', '.join(sorted(unknown))}")
    for run in RUNS:
        if chosen.names and run.name not in chosen.names:
            continue
        verdict = judged(run, chosen.folder / run.name.replace(", ", "-").replace(" ", "_"))
        problem = unexpected(run, verdict)
        wrong += bool(problem)
        words = "VALID" if verdict.valid else f"INVALID by {', '.join(verdict.reason_ids)}"
        print(f"{run.name}: {words}, {verdict.end}, {verdict.trials} trials. {problem}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
