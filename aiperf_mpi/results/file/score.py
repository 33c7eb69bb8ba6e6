# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the score: ticks, rates, errors, the regulated score (sections 3 and 4.4 of the paper,
Eq. 3).

Operations are exact Python integers: at 194 POPS a 64-bit sum wraps in a minute and a half. A rate is one
float division, so that the same two numbers always give the same rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from aiperf_mpi.network.architecture import Base, resnet50
from aiperf_mpi.opcount import analytical
from aiperf_mpi.paper import IMAGENET_IMAGES
from aiperf_mpi.results.file.rows import CREDITED

#: Largest value of an unsigned 64-bit column.
U8_MAX = 2**64 - 1

#: Ticks closer to core stop than this part of a tick are the sample at core stop.
_TICK_SLACK = 1e-9

#: More samples than this are refused: a corrupt tick must not fill the memory.
MAX_SAMPLES = 10_000_000


def operations(train_ops: int, val_ops: int, train_samples: int, val_samples: int) -> int:
    """Return the exact operations of an epoch or a trial: counts per image times images really used."""
    return int(train_ops) * int(train_samples) + int(val_ops) * int(val_samples)


def tick_count(core_seconds: float, tick: float) -> int:
    """Return the number of the samples: one for each whole tick before core stop, and one at core stop.

    There are none if the core time is not above 0. Raises ValueError unless both are finite and the tick is
    above 0, or for more than MAX_SAMPLES samples.
    """
    if not (math.isfinite(core_seconds) and math.isfinite(tick) and tick > 0):
        raise ValueError(f"core time {core_seconds} s, tick {tick} s: both must be finite, the tick above 0")
    if core_seconds <= 0:
        return 0
    whole = core_seconds / tick
    if whole > MAX_SAMPLES:
        raise ValueError(
            f"core time of {core_seconds} s with a tick of {tick} s: more than {MAX_SAMPLES} samples"
        )
    return max(1, math.ceil(whole - _TICK_SLACK))


def tick_times(core_seconds: float, tick: float) -> list[float]:
    """Return the times of the samples in s; raises ValueError as `tick_count`."""
    count = tick_count(core_seconds, tick)
    return [*(k * tick for k in range(1, count)), float(core_seconds)] if count else []


def rate(ops: int, seconds: float) -> float:
    """Return operations per second, or NaN if no time has passed."""
    return ops / seconds if seconds > 0 else math.nan


@cache
def resnet50_operations() -> tuple[int, int]:
    """Return operations to train on one image and to validate one, for the paper's ResNet-50 on ImageNet."""
    return analytical.operations(resnet50(Base(224, 3, 1000, 64, (3, 4, 6, 3))))


def normalised(ops_per_second: float) -> float:
    """Return a rate in op/s as ImageNet images per second of a ResNet-50 training, for comparison.

    One image costs its training and its share of the epoch's validation.
    """
    train_ops, val_ops = resnet50_operations()
    train, val = IMAGENET_IMAGES
    return ops_per_second / (train_ops + val_ops * val / train)


def regulated(error: float, val_samples: int, ops_per_second: float) -> float:
    """Return the regulated score -ln(error) x OPS in op/s, or NaN without an error.

    An error of 0 would make it infinite. It counts as one wrong image of `val_samples`, which never favours
    the run.
    """
    if not 0 <= error <= 1:
        return math.nan
    if error == 0:
        if val_samples < 1:
            return math.nan
        error = 1 / val_samples
    return -math.log(error) * ops_per_second


def is_credited(status: int, t_end: float, core_seconds: float) -> bool:
    """Return whether an epoch is credited: its trial did not fail, and it ended within the core time."""
    return status in CREDITED and t_end <= core_seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of the score: see the columns of /score_series. `ops` is exact."""

    t: float
    ops: int
    rate: float
    best_error: float
    regulated: float


def score_series(
    times: Iterable[float],
    t_end: np.ndarray,
    ops_credited: Sequence[int],
    val_error: np.ndarray,
    val_samples: np.ndarray,
    counts: np.ndarray,
) -> list[Sample]:
    """Return the samples at `times` (ascending, s) from the final epoch rows.

    Arguments:
        t_end: f8 [epochs], end of each epoch in s since core start.
        ops_credited: [epochs] credited operations, exact integers.
        val_error: f8 [epochs], NaN unless the validation is whole.
        val_samples: [epochs] images validated.
        counts: bool [epochs], whether the epoch's trial did not fail, so that its error counts.
    """
    order = np.argsort(t_end, kind="stable").tolist()
    ends, errors, sizes, valid = t_end.tolist(), val_error.tolist(), val_samples.tolist(), counts.tolist()
    samples, total, best, best_size, position = [], 0, math.nan, 0, 0
    for t in times:
        while position < len(order) and ends[order[position]] <= t:
            row = order[position]
            total += int(ops_credited[row])
            if valid[row] and errors[row] >= 0 and not errors[row] >= best:
                best, best_size = errors[row], int(sizes[row])
            position += 1
        speed = rate(total, t)
        samples.append(Sample(t, total, speed, best, regulated(best, best_size, speed)))
    return samples
