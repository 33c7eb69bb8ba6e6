# SPDX-License-Identifier: Apache-2.0
"""What chose the candidates of a run, and the errors that the search observed."""

from __future__ import annotations

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.trials.origin import OPTIMISER, SURROGATE


def by_models(e: Evidence) -> tuple[int, int] | None:
    """Return the number of trained trials whose network the surrogate chose, and of those whose
    hyperparameters the optimiser chose; None if the file does not say what chose a candidate."""
    chosen, tuned = e.column("trials", "chosen_by"), e.column("trials", "tuned_by")
    if not (chosen != "").any():
        return None
    return int(((chosen == SURROGATE) & e.trained).sum()), int(((tuned == OPTIMISER) & e.trained).sum())


def by_surrogate_or_hpo(e: Evidence) -> np.ndarray:
    """Return whether the surrogate or the optimiser chose each trial (bool [trials])."""
    return (e.column("trials", "chosen_by") == SURROGATE) | (e.column("trials", "tuned_by") == OPTIMISER)


def observed_errors(e: Evidence) -> np.ndarray:
    """Return the error of each trial that the search learns from (float64 [trials]).

    It is the one predicted from the learning curve in the warm-up, and the best one otherwise.
    """
    predicted = e.column("trials", "predicted_error")
    return np.where(np.isfinite(predicted), predicted, e.column("trials", "best_error"))
