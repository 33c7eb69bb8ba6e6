# SPDX-License-Identifier: Apache-2.0
"""Compare the three searches on scikit-learn's digits, by whole runs with the same seeds and trials.

    python benchmarks/search_digits.py [--seeds 5] [--trials 20] [--ranks 4] [--out FOLDER]

Each run is `mpirun -n 4 python -m aiperf_mpi` (a coordinator, one trainer, two generators) with small
networks of 16 x 16 pixels. It is drained when enough trials have ended, and the first trials of its result
file count. The methods take turns, so that other work on the machine slows all of them. The table is printed
and written after each seed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import h5py  # noqa: E402
import numpy as np  # noqa: E402

from aiperf_mpi.results.output import journal  # noqa: E402
from aiperf_mpi.trials.record import DONE, OUTCOME, STOPPED  # noqa: E402
from benchmarks.tables import markdown, out_folder, write  # noqa: E402

METHODS = ("bayesian", "evolution", "random")

#: Networks of 7 units at first; four epochs of 45 steps, the same for all rounds, so that trials can be
#: compared.
SETTINGS = (
    "data.image_size=16",
    "data.workers=1",
    "model.blocks=[1,1]",
    "model.width=4",
    "train.epochs=4",
    "train.round_epochs=[4,4]",
    "search.max_morphs=8",
    "search.max_units=24",
    "search.max_parameters=100000",
    "search.population=12",
    "search.sample_size=4",
    "hpo.batches=[16,32]",
    "run.tick=5.0",
)

#: Seconds that a run may take, start and end included.
LIMIT = 900.0


def run(method: str, seed: int, trials: int, ranks: int, folder: Path) -> list[float]:
    """Return the best errors of the first `trials` trials that ended well, in order of their ends."""
    words = [
        str(Path(sysconfig.get_path("scripts")) / "mpiexec"),
        "-n",
        str(ranks),
        sys.executable,
        "-m",
        "aiperf_mpi",
        "--preset",
        "demo",
        "--output",
        str(folder),
        "--seed",
        str(seed),
        "--time-limit",
        str(LIMIT),
        "--view",
        "plain",
        "--set",
        f"search.method='{method}'",
    ]
    for text in SETTINGS:
        words += ["--set", text]
    job = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    path, limit = folder / "journal.jsonl", time.monotonic() + LIMIT
    while job.poll() is None and time.monotonic() < limit and ended(path) < trials:
        time.sleep(1.0)
    if job.poll() is None:
        job.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=120)
    if job.returncode not in (0, 4):
        raise SystemExit(f"{method}, seed {seed}: exit code {job.returncode}\n{errors}")
    with h5py.File(folder / "result.h5") as file:
        table = {name: file["trials"][name][...] for name in ("t_end", "status", "best_error")}
    good = np.flatnonzero(
        np.isin(table["status"].astype(str), ("done", "stopped")) & np.isfinite(table["best_error"])
    )
    return table["best_error"][good[np.argsort(table["t_end"][good])]][:trials].tolist()


def ended(path: Path) -> int:
    """Return the number of trials that have ended well so far."""
    if not path.exists():
        return 0
    records = journal.replay(path).records
    return sum(record["kind"] == OUTCOME and record["status"] in (DONE, STOPPED) for record in records)


def table_of(rows: list[dict], trials: int) -> str:
    """Return the table of medians over the seeds, and of each seed's best error."""
    lines = []
    for method in METHODS:
        errors = [np.array(row["errors"]) for row in rows if row["search"] == method]
        best = [1 - error.min() for error in errors]
        lines.append(
            [
                method,
                f"{statistics.median(best):.4f} ({', '.join(f'{b:.4f}' for b in best)})",
                f"{statistics.mean(1 - error.mean() for error in errors):.4f}",
                f"{statistics.mean(1 - error[trials // 2 :].mean() for error in errors):.4f}",
            ]
        )
    return markdown(
        ["search", "best accuracy, median (each seed)", "mean accuracy", "of the last half"], lines
    )


def main() -> int:
    """Run the searches in turn; return 1 if a run has fewer trials than requested."""
    parser = argparse.ArgumentParser(description="The three searches on digits.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--out", type=out_folder, help="folder for search_digits.md and .json")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            for method in METHODS:
                place, start = Path(folder) / f"{method}-{seed}", time.monotonic()
                errors = run(method, seed, given.trials, given.ranks, place)
                shutil.rmtree(place)
                rows.append(
                    {"search": method, "seed": seed, "errors": errors, "seconds": time.monotonic() - start}
                )
                print(
                    f"{method:10} seed {seed}: {len(errors)} trials, best accuracy {1 - min(errors):.4f}, "
                    f"{rows[-1]['seconds']:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            text = "\n\n".join(
                [
                    "# The searches on digits",
                    f"{seed + 1} seeds, {given.trials} trials of one replica each, {given.ranks} ranks, "
                    f"{os.cpu_count()} cores.",
                    table_of(rows, given.trials),
                ]
            )
            write(given.out, "search_digits", text, rows)
    return int(any(len(row["errors"]) < given.trials for row in rows))


if __name__ == "__main__":
    sys.exit(main())
