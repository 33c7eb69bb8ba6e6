# SPDX-License-Identifier: Apache-2.0
"""Children that inherit weights compute their parents' function (V08)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.results.file.rows import FAILED
from aiperf_mpi.results.judge.judge import judge
from tests.helpers.results.changes import written
from tests.helpers.results.example_run import example_run


@pytest.mark.parametrize(
    ("difference", "valid"),
    [
        (0.0, True),
        (3e-7, True),
        (1e-4, True),
        (1.01e-4, False),
        (-1e-7, False),
        (math.inf, False),
        (math.nan, False),
    ],
)
def test_children_that_inherit_weights_compute_their_parents_function(
    difference: float, valid: bool, tmp_path: Path
) -> None:
    example = example_run(sets=("model.initial_weight='inherit'",))
    assert [candidate.parent_id < 0 for candidate in example.candidates] == [True] + [False] * 5
    example.trials["morph_max_abs_diff"][1:] = 2e-7
    example.trials["morph_max_abs_diff"][3] = difference
    verdict = judge(written(example, tmp_path))
    assert verdict.valid is valid, verdict.reasons
    assert verdict.division == "open"
    assert set(verdict.reason_ids) == (set() if valid else {"V08"})


def test_only_what_inherits_has_a_difference_to_its_parent(tmp_path: Path) -> None:
    example = example_run(sets=("model.initial_weight='inherit'",))
    example.trials["morph_max_abs_diff"] = 2e-7
    initial = judge(written(example, tmp_path))
    assert not initial.valid and "initial architecture" in str(initial.reasons)
    example = example_run()
    example.trials["morph_max_abs_diff"][2] = 2e-7
    he = judge(written(example, tmp_path))
    assert not he.valid and "inherits no weights" in str(he.reasons)

    # A child whose difference is too large failed for it before it was trained, which costs only itself.
    example = example_run(sets=("model.initial_weight='inherit'",))
    example.trials["morph_max_abs_diff"][1:] = 2e-7
    row = example.trial(4)
    example.epochs = example.epochs[example.epochs["trial_id"] != 4]
    for name in ("epochs", "train_samples", "val_samples"):
        example.trials[name][row] = 0
    example.trials["best_error"][row] = np.nan
    example.trials["status"][row], example.trials["morph_max_abs_diff"][row] = FAILED, 0.5
    assert judge(written(example, tmp_path)).valid
