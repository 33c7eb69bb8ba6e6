# SPDX-License-Identifier: Apache-2.0
"""The result of an epoch, and the sums over its completed batches that it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aiperf_mpi.training.steps.step import Metrics


@dataclass(frozen=True, slots=True)
class EpochResult:
    """The completed part of one epoch (counted from 0); times are the clock's.

    Losses are means over the completed images. `val_loss` and `val_error` are NaN unless the validation is
    whole; `partial` means that the epoch's training or validation is not whole. `t_end` is when its last
    counted batch completed.
    """

    epoch: int
    steps: int
    t_start: float
    t_end: float
    train_samples: int
    val_samples: int
    lr: float
    train_loss: float
    val_loss: float
    val_error: float
    partial: bool


@dataclass(slots=True)
class Sums:
    """Add up images, correct answers and loss over the completed batches of a pass.

    `whole` is set once all batches of the pass are complete.
    """

    batches: int = 0
    images: int = 0
    correct: int = 0
    loss: float = 0.0
    whole: bool = False

    def add(self, metrics: Metrics) -> float:
        """Add the sums of a completed batch, and return its mean loss."""
        loss, images = float(metrics.loss), int(metrics.images)
        self.batches += 1
        self.images += images
        self.correct += int(metrics.correct)
        self.loss += loss
        return loss / max(images, 1)

    @property
    def mean_loss(self) -> float:
        """Mean loss of the images so far; NaN without an image."""
        return self.loss / self.images if self.images else math.nan

    @property
    def error(self) -> float:
        """Share of the images so far that were classified wrongly; NaN without an image."""
        return (self.images - self.correct) / self.images if self.images else math.nan


def result_of(epoch: int, rate: float, times: tuple[float, float], train: Sums, val: Sums) -> EpochResult:
    """Return the result of an epoch at the learning rate `rate`; `times` are its start and its end."""
    return EpochResult(
        epoch=epoch,
        steps=train.batches,
        t_start=times[0],
        t_end=times[1],
        train_samples=train.images,
        val_samples=val.images,
        lr=rate,
        train_loss=train.mean_loss,
        val_loss=val.mean_loss if val.whole else math.nan,
        val_error=val.error if val.whole else math.nan,
        partial=not val.whole,
    )
