# SPDX-License-Identifier: Apache-2.0
"""Compare optimisers of hyperparameters: how often they find the best cell, and the cost of a suggestion.

    python benchmarks/hpo.py [--seeds N] [--first K] [--out FOLDER]

First, for each method and level of noise: the number of landscapes whose best cell is recommended after 30
trials, with architectures that make no difference, and with architectures whose effects are as large as the
cells'. Next, what the first 5, 10 and 20 trained cells are worth, compared with random ones on the same
landscapes. Then the processor seconds of one suggestion with 30, 100 and 500 trials in the history, after the
surrogate has been learnt (in brackets: the first suggestion, which learns it). Assumes one thread:
OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from aiperf_mpi.search.hpo import make_hpo  # noqa: E402
from benchmarks.tables import described, machine, markdown, out_folder, write  # noqa: E402
from tests.helpers.search.cell_landscape import GAP, CellLandscape, Study  # noqa: E402

METHODS = ("random", "grid", "tpe", "bayesian")
NOISES = (0.2, 0.4)
TRIALS, LENGTHS, REPEAT = 30, (30, 100, 500), 5

#: Trials of the optimised rounds after which the trained cells are compared.
COMPARED = (5, 10, 20)

#: Processor seconds that a suggestion may cost at 500 observations, and the part of landscapes to be found.
GOAL_SECONDS, GOAL_FOUND = 0.2, 0.8


def found(method: str, noise: float, architectures: float, seeds: range) -> tuple[int, list[list[float]]]:
    """Return in how many of the landscapes the recommended cell is the best one, and for each landscape the
    mean value of the cells of the first trials, by COMPARED (the least is the best)."""
    count, means = 0, []
    for seed in seeds:
        study = Study(CellLandscape(seed, noise, architectures), make_hpo(method), seed)
        values = [study.value(study.train(4)) for _ in range(TRIALS)]
        count += study.found()
        means.append([statistics.mean(values[:first]) for first in COMPARED])
    return count, means


def early(means: dict[str, np.ndarray]) -> str:
    """Return the table of the first trained cells: mean values, and paired differences to random cells.

    Arguments:
        means: by method, float64 [landscapes of all cases, COMPARED].
    """
    lines = []
    for method, own in means.items():
        apart = own - means["random"]
        half = 1.96 * apart.std(0, ddof=1) / np.sqrt(len(apart))
        pairs = zip(apart.mean(0), half, strict=True)
        differences = ["" if method == "random" else f"{mean:+.2f} ± {width:.2f}" for mean, width in pairs]
        lines.append([method, *(f"{mean:+.2f}" for mean in own.mean(0)), *differences])
    heads = [f"mean of {first}" for first in COMPARED] + [f"below random at {first}" for first in COMPARED]
    return markdown(["method", *heads], lines)


def cost(method: str, length: int) -> tuple[float, float]:
    """Return processor seconds of the first and the median later suggestion at `length` observations."""
    study = Study(CellLandscape(0, 0.4), make_hpo("random"), 0)
    for _ in range(length):
        study.train(4)
    view, proposal, hpo, seconds = study.view(), study.proposal(), make_hpo(method), []
    for seed in range(REPEAT + 1):
        before = time.process_time()
        hpo.suggest(view, proposal, np.random.default_rng(seed))
        seconds.append(time.process_time() - before)
    return seconds[0], statistics.median(seconds[1:])


def main() -> int:
    """Measure and print; return 1 if the Bayesian optimiser misses a goal."""
    parser = argparse.ArgumentParser(description="Optimisers of hyperparameters, compared.")
    parser.add_argument("--seeds", type=int, default=20, help="landscapes (default 20)")
    parser.add_argument("--first", type=int, default=0, help="number of the first landscape (default 0)")
    parser.add_argument("--out", type=out_folder, help="folder for hpo.md and hpo.json")
    arguments = parser.parse_args()

    cases = [(noise, architectures) for architectures in (0.0, 1.0) for noise in NOISES]
    header = [
        "method",
        *(f"noise {n}, architectures {a}" for n, a in cases),
        *(f"{n} trials" for n in LENGTHS),
    ]
    place, rows, lines = machine(), {}, []
    means: dict[str, np.ndarray] = {}
    for method in METHODS:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        studies = [found(method, noise, architectures, seeds) for noise, architectures in cases]
        hits = [hit for hit, _ in studies]
        means[method] = np.array([mean for _, own in studies for mean in own])
        seconds = [cost(method, length) for length in LENGTHS]
        rows[method] = {
            "found": hits,
            "first_cells": means[method].round(4).tolist(),
            "first_s": [a for a, _ in seconds],
            "median_s": [b for _, b in seconds],
        }
        cells = [f"{hit}/{arguments.seeds}" for hit in hits] + [f"{b:.3f} s ({a:.3f} s)" for a, b in seconds]
        lines.append([method, *cells])
        print(*lines[-1], file=sys.stderr, flush=True)
    best = rows["bayesian"]
    met = min(best["found"][:2]) >= GOAL_FOUND * arguments.seeds and best["median_s"][-1] <= GOAL_SECONDS
    text = "\n\n".join(
        [
            "# Optimisers of hyperparameters",
            described(place),
            f"Best cell of 15 recommended after {TRIALS} trials (gap to the second above {GAP} sd of the "
            "cells), and processor seconds of a suggestion; in brackets those of the first one, which "
            "learns the surrogate.",
            markdown(header, lines),
            "Values of the first trained cells over all four cases, in standard deviations of the cells "
            "(less is better), and mean paired differences to random cells with their intervals of 95 %.",
            early(means),
            f"Goals of the Bayesian one: {'met' if met else 'MISSED'}.",
        ]
    )
    data = {
        "machine": place,
        "cases": cases,
        "lengths": LENGTHS,
        "first": arguments.first,
        "seeds": arguments.seeds,
    }
    write(arguments.out, "hpo", text, data | {"methods": rows})
    return not met


if __name__ == "__main__":
    sys.exit(main())
