# SPDX-License-Identifier: Apache-2.0
"""Compare when the surrogate begins: what the first 5, 10 and 20 trials find, against random and evolution.

    python benchmarks/search_start.py [--seeds 100] [--starts 2 3 4 8] [--workers 3] [--out FOLDER]

The landscapes and the noise are those of search_learning.py. Three workers are one replica: a candidate is
chosen two trials before it is trained, as it waits in a queue of two. All searches have the same seeds, so
that differences are paired: the mean over the seeds, with its interval of 95 %. A result of an earlier call
in FOLDER is continued: rows of the same landscape, seed and search are not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from aiperf_mpi.search.nas import Bayesian, Search, make_search  # noqa: E402
from aiperf_mpi.trials.view import START  # noqa: E402
from benchmarks.tables import goals, markdown, out_folder, write  # noqa: E402
from tests.helpers.search.bottleneck import Bottleneck  # noqa: E402
from tests.helpers.search.landscape import Landscape, run_search  # noqa: E402

LANDSCAPES = {"sum of parts": Landscape, "weakest stage": Bottleneck}

#: Trials after which the searches are compared, and those of a run.
COMPARED = (5, 10, 20)

#: Runs of the population that gives a landscape its scale, and the noise in its standard deviations.
RUNS, NOISE = 10, 0.3

BASELINES = ("random", "evolution")


def searches(starts: list[int]) -> dict[str, Search]:
    """Return the searches by name: the two baselines, and the Bayesian one by its start."""
    return {
        "random": make_search("random"),
        "evolution": make_search("evolution", population=20, sample_size=5),
        **{f"surrogate from {start}": Bayesian(start=start) for start in starts},
    }


def study(seeds: range, starts: list[int], workers: int, rows: list[dict]) -> None:
    """Add a row for each landscape, seed and search that `rows` does not have: the best score by trials."""
    known = {(row["landscape"], row["seed"], row["search"], row["workers"]) for row in rows}
    for seed in seeds:
        for name, kind in LANDSCAPES.items():
            landscape = kind(seed, NOISE, runs=RUNS)
            for method, search in searches(starts).items():
                if (name, seed, method, workers) in known:
                    continue
                scores = run_search(search, landscape, seed, max(COMPARED), workers).scores
                best = [round(max(scores[:count]), 4) for count in COMPARED]
                rows.append(
                    {"landscape": name, "seed": seed, "search": method, "workers": workers, "best": best}
                )


def difference(rows: list[dict], landscape: str, method: str, other: str) -> list[tuple[float, float, int]]:
    """Return the mean paired difference of two searches, the half width of its interval, and the number of
    seeds, by trials."""
    by: dict[str, dict[int, list[float]]] = {method: {}, other: {}}
    for row in rows:
        if row["landscape"] == landscape and row["search"] in by:
            by[row["search"]][row["seed"]] = row["best"]
    seeds = sorted(by[method].keys() & by[other].keys())
    apart = np.array([np.subtract(by[method][seed], by[other][seed]) for seed in seeds])
    half = 1.96 * apart.std(0, ddof=1) / np.sqrt(len(seeds))
    return [(float(mean), float(width), len(seeds)) for mean, width in zip(apart.mean(0), half, strict=True)]


def summary(rows: list[dict], starts: list[int]) -> tuple[str, dict[str, bool]]:
    """Return the table as Markdown, and which goals of the product's start are met."""
    heads = ["landscape", "search", "seeds", *(f"best of {count}" for count in COMPARED)]
    heads += [f"over {other} at {count}" for other in BASELINES for count in COMPARED]
    lines, met = [], {}
    for landscape in LANDSCAPES:
        for method in searches(starts):
            own = np.array([r["best"] for r in rows if (r["landscape"], r["search"]) == (landscape, method)])
            line = [landscape, method, str(len(own)), *(f"{mean:.2f}" for mean in own.mean(0))]
            for other in BASELINES:
                if other == method:
                    line += [""] * len(COMPARED)
                    continue
                apart = difference(rows, landscape, method, other)
                line += [f"{mean:+.2f} ± {half:.2f}" for mean, half, _ in apart]
                if method == f"surrogate from {START}" and other == "random":
                    met |= _goals(landscape, apart)
            lines.append(line)
    return markdown(heads, lines), met


def _goals(landscape: str, apart: list[tuple[float, float, int]]) -> dict[str, bool]:
    """Return whether the intervals of the differences to random search are where they shall be."""
    (first, half, _), *later = apart
    above = f"{landscape}: the interval of the difference to random"
    met = {f"{above} reaches 0 or lies above at {COMPARED[0]} trials": first + half >= 0}
    for count, (mean, width, _) in zip(COMPARED[1:], later, strict=True):
        met[f"{above} lies above 0 at {count} trials"] = mean - width > 0
    return met


def main() -> int:
    """Run the study; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="When shall the surrogate begin?")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--starts", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--out", type=out_folder, help="folder for search_start.md and .json")
    given = parser.parse_args()
    starts = sorted({*given.starts, START})
    stored = given.out / "search_start.json" if given.out else None
    rows = json.loads(stored.read_text())["rows"] if stored is not None and stored.exists() else []
    for first in range(0, given.seeds, 10):
        study(range(first, min(first + 10, given.seeds)), starts, given.workers, rows)
        now = [row for row in rows if row["workers"] == given.workers]
        table, met = summary(now, starts)
        text = "\n\n".join(
            [
                "# When the surrogate begins",
                f"Best score of the first trials in standard deviations of the landscape, {given.workers} "
                f"workers, noise {NOISE}; mean paired differences with their intervals of 95 %. The program "
                f"begins at {START} ended trials.",
                table,
                goals(met),
            ]
        )
        write(given.out, "search_start", text, {"goals": met, "rows": rows}, quiet=True)
    print(text)
    return not all(met.values())


if __name__ == "__main__":
    sys.exit(main())
