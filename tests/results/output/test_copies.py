# SPDX-License-Identifier: Apache-2.0
"""Copies of a run are not a submission of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from aiperf_mpi.results.file import resultfile, tables
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.output.copies import copied
from tests.helpers.results.example_run import Example, example_run

DATA = Path(__file__).resolve().parents[2] / "data"


def measured(seed: int) -> Example:
    """An example of a seed whose times and losses have all digits, as measured ones."""
    example, rng = example_run(seed=seed), np.random.default_rng(seed)
    for table, names in (
        (example.epochs, ("train_loss", "val_loss", "t_end")),
        (example.trials, ("t_first_step", "compile_seconds")),
        (example.ranks, ("wall_seconds",)),
    ):
        for name in names:
            table[name] *= 1 + 1e-3 * rng.random(len(table))
    return example


def content(example: Example) -> Result:
    with resultfile.new_file(tables.build(example.run())) as file:
        return resultfile.load(file)


def test_runs_of_three_seeds_are_three_runs() -> None:
    assert copied([content(measured(seed)) for seed in (1, 2, 3)], ["a", "b", ""]) == ""


def test_runs_with_the_same_weights_are_one_run() -> None:
    runs = [content(measured(seed)) for seed in (1, 2, 3)]
    assert "same weights" in copied(runs, ["a", "b", "a"])
    # A run without a checkpoint has no hash.
    assert copied(runs, ["", "", ""]) == ""


def test_a_copy_with_another_seed_and_other_losses_or_times_is_found() -> None:
    first, copy = measured(1), measured(1)
    copy.header = replace(copy.header, run_id="copy", seed=2)
    assert "training losses" in copied([content(first), content(copy)])

    # Other losses: the compilations took as long, and without these all other times are the same.
    rng = np.random.default_rng(5)
    for name in ("train_loss", "val_loss"):
        copy.epochs[name] *= 1 + 0.1 * rng.random(len(copy.epochs))
    assert "compilations" in copied([content(first), content(copy)])
    copy.trials["compile_seconds"] *= 1.1
    assert "same times" in copied([content(first), content(copy)])


def test_runs_of_many_epochs_share_losses_by_chance() -> None:
    """Sums of float32 losses have some 1e8 values: of 4 million epochs one in thirty has a twin in another
    run. Here 2,000 of 10,000 values: 18 % have a twin, but of 2,000 pairs 2,000 x 2,000 / 1e8 = 0.04."""
    runs = [content(measured(seed)) for seed in (1, 2)]
    for run, seed in zip(runs, (1, 2), strict=True):
        values = np.random.default_rng(seed).integers(10_000, 20_000, 2_000)
        run.tables["epochs"]["val_loss"] = values / 9_973.0
    assert copied(runs) == ""
    runs[1].tables["epochs"]["val_loss"][:100] = runs[0].tables["epochs"]["val_loss"][:100]
    assert "validation losses" in copied(runs)


def test_a_run_is_a_copy_of_itself_alone() -> None:
    run = resultfile.read(DATA / "result-0.1.h5")
    assert "copies of one run" in copied([run, run])
    assert copied([run, content(measured(1))]) == ""
