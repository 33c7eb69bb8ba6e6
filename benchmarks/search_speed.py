# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of a proposal on one core by the length of the history, for networks of ResNet-50's size.

    python benchmarks/search_speed.py [--lengths 10 100 1000 10000 100000 1000000] [--repeat 5] [--out FOLDER]

Histories hold a tree of random chains with made-up errors. Up to 20,000 trials it is grown for real; a longer
one is that tree again and again, each time with new errors. It is written to a file that the measuring
process maps, as a generator maps the window that its node shares, so that resident memory counts what the
search itself needs and the pages that it looks at. "First" is the first proposal of a process, which replays
and learns everything; "next" the median of those that follow at the same length, other streams; "anchor" the
one at which hyperparameters are learnt anew, every eighth of the history or 128 trials. Each number is the
median over as many processes as --repeat says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from aiperf_mpi.network.architecture import Architecture  # noqa: E402
from aiperf_mpi.network.morphism import random_chain  # noqa: E402
from aiperf_mpi.search.nas import Bayesian  # noqa: E402
from aiperf_mpi.streams import SEARCH, stream  # noqa: E402
from aiperf_mpi.trials import record as rec  # noqa: E402
from aiperf_mpi.trials.candidate import Candidate  # noqa: E402
from aiperf_mpi.trials.record import RECORD_DTYPE, SUMMARY_DTYPE  # noqa: E402
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView  # noqa: E402
from benchmarks.tables import goals, markdown, out_folder, write  # noqa: E402

#: Seconds of the authors' code for one proposal with 4 trials in its history, and what is wanted here by
#: length.
AUTHORS = (4, 287.0)
GOALS = {1_000: 0.5, 10_000: 2.0, 1_000_000: 5.0}

#: GiB of resident memory that a proposal with 1,000,000 trials may need.
GOAL_GIB = 1.0

#: Trials of the tree that is grown for real; parents are drawn among so many trials before.
GROWN, YOUNG = 20_000, 2_000


def grow(count: int) -> np.ndarray:
    """Return records of a tree of `count` trials, each followed by its outcome (RECORD_DTYPE [2 count])."""
    rng, initial = np.random.default_rng(0), Architecture()
    tree, records = [initial], np.zeros(2 * count, RECORD_DTYPE)
    for index in range(count):
        parent, architecture, own = -1, initial, ()
        if index:
            place = int(rng.integers(max(0, index - YOUNG), index))
            architecture, own = random_chain(tree[place], rng, int(rng.integers(1, 4)))
            if not own:
                place, (architecture, own) = 0, random_chain(initial, rng, 3)
            parent = 2 * place
            tree.append(architecture)
        candidate = Candidate.new(
            architecture,
            own,
            parent_id=parent,
            replica=index % 32,
            generator=0,
            round=index // 32 + 1,
            batch_per_device=448,
            devices=8,
            seed=0,
        )
        records[2 * index] = candidate.to_record(0.0)
        candidate = dataclasses.replace(candidate, trial_id=2 * index)
        error = 0.3 + 0.4 / (1 + len(architecture.morphs)) + 0.02 * rng.normal()
        records[2 * index + 1] = candidate.outcome(rec.DONE, 1.0, epochs=1, best_error=error)
    return records


def repeat(tree: np.ndarray, count: int, folder: Path) -> tuple[Path, Path]:
    """Write files of records and summaries: the tree, then copies of it with other ids and errors."""
    paths = folder / "records.npy", folder / "summaries.npy"
    records = np.lib.format.open_memmap(paths[0], "w+", RECORD_DTYPE, (2 * count,))
    summaries = np.lib.format.open_memmap(paths[1], "w+", SUMMARY_DTYPE, (2 * count,))
    one = np.array([rec.summarise(record) for record in tree], SUMMARY_DTYPE)
    rng = np.random.default_rng(1)
    for start in range(0, 2 * count, len(tree)):
        size = min(len(tree), 2 * count - start)
        records[start : start + size] = tree[:size]
        part = summaries[start : start + size]
        part[:] = one[:size]
        if not start:
            continue

        # Later copies: children of the initial network stay its children, all else moves on by the tree's
        # length.
        part["trial"][1::2] += start
        part["parent"][part["parent"] > 0] += start
        part["value"][1::2] += rng.normal(0.0, 0.02, size // 2).astype(np.float32)
        part[:2] = rec.abandoned_summary()
    return paths


def reader(records: np.ndarray, grown: int):
    """Return a function that reads the record of a slot, with the parent's id in its copy of the tree."""

    def read(slot: int) -> np.void:
        record, start = records[slot].copy(), slot // grown * grown
        if start and record["parent"] > 0:
            record["parent"] += start
            record = rec.seal(record)
        return record

    return read


def resident() -> float:
    """Return the peak resident memory of this program in GiB; getrusage would include its parent's."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 2**20


def measure(paths: tuple[Path, Path], grown: int, repeats: int) -> dict[str, float]:
    """Return processor seconds of the first and the next proposals and at an anchor, and memory."""
    records, summaries = (np.load(path, mmap_mode="r") for path in paths)
    search, cache, initial, start_gib = Bayesian(), ArchitectureCache(), Architecture(), resident()
    times = []
    for number in range(1 + repeats):
        # A generator takes a new view for each proposal, so that belongs to its cost.
        start = time.process_time()
        view = HistoryView(summaries, reader(records, grown), initial, cache)
        search.propose(view, stream(SEARCH, 0, 0, number, view.length))
        times.append(time.process_time() - start)

    # The same with an eighth less seen (or 160 trials): what is learnt anew, while most architectures are
    # known.
    finished = len(view.finished)
    earlier = summaries[: len(summaries) - 2 * max(1, min(160, finished // 7))]
    start = time.process_time()
    view = HistoryView(earlier, reader(records, grown), initial, cache)
    search.propose(view, stream(SEARCH, 0, 0, 0, view.length))
    return {
        "first_s": times[0],
        "next_s": statistics.median(times[1:]),
        "anchor_s": time.process_time() - start,
        "resident_gib": resident(),
        "before_gib": start_gib,
    }


def main() -> int:
    """Measure each length in its own process; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="What a proposal costs against the length of the history.")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[10, 100, 1_000, 10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=out_folder, help="folder for search_speed.md and .json")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        records, summaries, grown = given.measure
        print(json.dumps(measure((Path(records), Path(summaries)), int(grown), given.repeat)))
        return 0

    tree, rows = grow(min(GROWN, max(given.lengths))), []
    for length in given.lengths:
        with tempfile.TemporaryDirectory() as folder:
            part = tree[: 2 * length]
            paths = repeat(part, length, Path(folder))
            words = [
                sys.executable,
                __file__,
                "--measure",
                *map(str, paths),
                str(len(part)),
                "--repeat",
                str(given.repeat),
            ]
            measured = [
                json.loads(
                    subprocess.run(words, capture_output=True, text=True, timeout=900, check=True).stdout
                )
                for _ in range(given.repeat)
            ]
        rows.append(
            {"trials": length}
            | {name: statistics.median(one[name] for one in measured) for name in measured[0]}
        )
        print(rows[-1], file=sys.stderr, flush=True)

    lines = [
        [
            f"{row['trials']:,}",
            *(f"{row[key]:.3f} s" for key in ("first_s", "next_s", "anchor_s")),
            f"{row['resident_gib']:.2f} GiB",
        ]
        for row in rows
    ]
    lines += [[f"{AUTHORS[0]} (the authors' code)", "", f"{AUTHORS[1]:.0f} s", "", ""]]
    met = {
        f"{length:,} trials in under {goal} s, {name}": row[key] < goal
        for length, goal in GOALS.items()
        for row in rows
        if row["trials"] == length
        for name, key in (("first", "first_s"), ("next", "next_s"), ("at an anchor", "anchor_s"))
    }
    met |= {
        f"{row['trials']:,} trials in under {GOAL_GIB} GiB": row["resident_gib"] < GOAL_GIB
        for row in rows[-1:]
    }
    heads = ["trials in the history", "first proposal", "next ones", "at an anchor", "resident memory"]
    write(
        given.out,
        "search_speed",
        "\n\n".join(
            [
                "# What a proposal costs",
                f"Processor seconds of one core, medians of {given.repeat} processes.",
                markdown(heads, lines),
                goals(met),
            ]
        ),
        rows,
    )
    return not all(met.values())


if __name__ == "__main__":
    sys.exit(main())
