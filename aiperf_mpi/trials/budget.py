# SPDX-License-Identifier: Apache-2.0
"""Training budget of a trial: epochs and patience by round, learning rate, early stop.

Sections 4.3 and 4.5 of the paper; the constants are from the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiperf_mpi.paper import (
    MIN_DELTA,
    PATIENCE_BASE,
    PATIENCE_MAX,
    PATIENCE_STEP,
    ROUND_EPOCHS,
    SCHEDULE_EPOCHS,
)


class TrainRules(Protocol):
    """The settings of the section `train` that a budget depends on."""

    @property
    def epochs(self) -> int:
        """Length of the decay of the learning rate, and maximum number of epochs of a trial."""

    @property
    def round_epochs(self) -> tuple[int, ...]:
        """Epochs of rounds 1, 2, ...; the last number holds for all later rounds."""

    @property
    def patience_base(self) -> int:
        """Patience of round 1 in epochs."""

    @property
    def patience_step(self) -> int:
        """Epochs by which the patience grows with each round."""

    @property
    def patience_max(self) -> int:
        """Maximum patience in epochs."""


@dataclass(frozen=True)
class Budget:
    """How long a trial may train.

    Arguments:
        epochs_max: maximum number of epochs.
        patience: epochs without progress after which training stops.
        warm_up: whether the round trains fewer epochs than the schedule has. The search then uses a predicted
            accuracy (rounds 1 to 3 of the paper).
    """

    epochs_max: int
    patience: int
    warm_up: bool


@dataclass(frozen=True)
class DefaultRules:
    """The paper's rules. The section `train` of a configuration has the same fields."""

    epochs: int = SCHEDULE_EPOCHS
    round_epochs: tuple[int, ...] = ROUND_EPOCHS
    patience_base: int = PATIENCE_BASE
    patience_step: int = PATIENCE_STEP
    patience_max: int = PATIENCE_MAX


PAPER = DefaultRules()


def budget(round: int, rules: TrainRules = PAPER) -> Budget:
    """Return the budget of a candidate of round `round`, counted from 1.

    Epochs are 15, 30, 45, then 60; patience is min(6 + 2 (r - 1), 20), unless `rules` differ. Raises
    ValueError for a round below 1.
    """
    if round < 1:
        raise ValueError(f"budget: round {round}, but rounds count from 1")
    epochs = min(rules.round_epochs[min(round, len(rules.round_epochs)) - 1], rules.epochs)
    patience = min(rules.patience_base + rules.patience_step * (round - 1), rules.patience_max)
    return Budget(epochs, patience, epochs < rules.epochs)


def learning_rate(lr0: float, epoch: int, schedule: int = SCHEDULE_EPOCHS) -> float:
    """Return the learning rate of an epoch counted from 0: `lr0` (1 - epoch / schedule).

    It is the same in every round (Table 4). Raises ValueError for an epoch outside of the schedule.
    """
    if not 0 <= epoch < schedule:
        raise ValueError(f"learning rate: epoch {epoch} is outside of the schedule of {schedule} epochs")
    return lr0 * (1.0 - epoch / schedule)


def should_stop(val_losses: Sequence[float], patience: int, min_delta: float = MIN_DELTA) -> bool:
    """Return whether a trial stops early: `patience` epochs in a row brought no progress.

    Progress is a validation loss that is below the best one by more than `min_delta`. A NaN is not progress.
    The first epoch is, unless its loss is NaN; a trial then stops after epoch `patience` + 1 at the earliest.

    Arguments:
        val_losses: one per epoch.
    """
    return [0, *_waited(val_losses, min_delta)][-1] >= patience


def stops_after(val_losses: Sequence[float], patience: int, min_delta: float = MIN_DELTA) -> int:
    """Return the number of epochs after which a trial with these losses stops; 0 if it goes on."""
    for epochs, waited in enumerate(_waited(val_losses, min_delta), start=1):
        if waited >= patience:
            return epochs
    return 0


def _waited(val_losses: Sequence[float], min_delta: float) -> Iterator[int]:
    """Yield the number of epochs without progress, after each epoch."""
    best, waited = math.inf, 0
    for loss in val_losses:
        if loss + min_delta < best:
            best, waited = loss, 0
        else:
            waited += 1
        yield waited
