# SPDX-License-Identifier: Apache-2.0
"""Trainings of a tiny network on a few random images."""

from __future__ import annotations

from typing import Any

import pytest

from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.training.epoch import EpochResult
from aiperf_mpi.training.fit import FitSettings, Training
from aiperf_mpi.training.steps.compile import Compiled
from tests.helpers.training.cases import TINY, batches, random_batch, started

#: 40 images to train on, 10 batches of 4; 14 to validate, 3 batches of 4 and one with 2 of 4.
TRAIN = [x[0] for x in random_batch(TINY, 1, 40, seed=1)]
VAL = [x[0] for x in random_batch(TINY, 1, 14, seed=2)]


def train_images(epoch: int) -> Any:
    return batches(TRAIN[0], TRAIN[1], 1, 4)


def val_images() -> Any:
    return batches(VAL[0], VAL[1], 1, 4)


def training(compiled: Compiled, **changes: Any) -> Training:
    """A training of three epochs of the images above, with anything else that a test asks for."""
    rate = changes.pop("rate", 0.01)
    settings = FitSettings(
        changes.pop("epochs", 3), changes.pop("patience", 10), lambda epoch: rate / (epoch + 1)
    )
    usual = {
        "train_batches": train_images,
        "val_batches": val_images,
        "timer": PhaseTimer(),
        "poll": lambda: False,
    }
    return Training(compiled, started(compiled), settings=settings, **{**usual, **changes})


def rows_until(run: Training, error: type[Exception], match: str) -> list[EpochResult]:
    rows = []
    with pytest.raises(error, match=match):
        for row in run:
            rows.append(row)
    return rows
