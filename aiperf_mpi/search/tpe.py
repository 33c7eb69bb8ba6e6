# SPDX-License-Identifier: Apache-2.0
"""Hyperparameters by a tree-structured Parzen estimator, the paper's own method.

The estimator (Bergstra et al., 2011) is Optuna's, an optional extra that only this method imports.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING

import numpy as np

from aiperf_mpi.search.cells import Cells

if TYPE_CHECKING:
    from aiperf_mpi.search.effects import Observed

#: The command that installs Optuna.
INSTALL = "pip install 'aiperf_mpi[tpe]'"

#: Number of cells that the estimator compares: LEAST_CANDIDATES plus a draw from an exponential distribution
#: of mean MORE_CANDIDATES for each suggestion. With Optuna's 24 of 15 cells, nearly all generators with the
#: same history get the same cell; with few the estimator learns less about the best one.
LEAST_CANDIDATES, MORE_CANDIDATES = 3, 8.0


def missing() -> str:
    """Return the error message if Optuna is not installed, otherwise an empty string."""
    if importlib.util.find_spec("optuna") is not None:
        return ""
    return f"hpo.method: 'tpe' needs Optuna, which is not installed; type: {INSTALL}"


def ask(cells: Cells, observed: Observed, rng: np.random.Generator) -> int:
    """Return the cell that the estimator suggests.

    Each suggestion has its own study, so that it depends on its arguments alone. Pending trials are running
    trials of the study, to which the estimator assigns a bad value (constant liar).
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = {"row": cells.shape[0], "column": cells.shape[1]}
    space = {
        name: optuna.distributions.IntDistribution(0, count - 1) for name, count in names.items() if count > 1
    }
    if not space:
        return 0

    def trial(cell: int, value: float | None) -> optuna.trial.FrozenTrial:
        place = dict(zip(names, (int(i) for i in divmod(cell, cells.shape[1])), strict=True))
        state = TrialState.RUNNING if value is None else TrialState.COMPLETE
        return create_trial(
            state=state, value=value, params={name: place[name] for name in space}, distributions=dict(space)
        )

    candidates = LEAST_CANDIDATES + int(rng.exponential(MORE_CANDIDATES))
    with warnings.catch_warnings():
        # Both options are marked experimental: their behaviour may change between versions.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=int(rng.integers(2**31)),
            n_startup_trials=1,  # the design is made before it is asked
            multivariate=True,
            n_ei_candidates=candidates,
            constant_liar=True,
        )
    study = optuna.create_study(sampler=sampler)
    study.add_trials(
        [
            trial(int(cell), float(value))
            for cell, value in zip(observed.of_trial, observed.trial_values, strict=True)
        ]
    )
    study.add_trials(
        [trial(int(cell), None) for cell in np.repeat(np.arange(len(observed.pending)), observed.pending)]
    )
    params = study.ask(dict(space)).params
    return int(params.get("row", 0)) * cells.shape[1] + int(params.get("column", 0))
