# SPDX-License-Identifier: Apache-2.0
"""The check of the devices: operands of at least 16 bits, and no rate above the published peak."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.requirements import NO_PEAK
from aiperf_mpi.results.judge.checks.registry import check, rows_where, short
from aiperf_mpi.results.judge.checks.timing import CLOCK_SLACK

#: Types of matrix operands that are at least FP-16 (Table 4, Minimum precision); bfloat16 counts as FP-16.
PRECISIONS = ("float16", "bfloat16", "float32", "float64")


@check(
    "V10",
    f"precision: the run's in every trial, and one of {', '.join(PRECISIONS)}; rate: of epochs, replicas and "
    "the run at most their devices' peak at that precision "
    "(official runs need one of the table, or a declared one)",
    why=(
        "The paper asks for at least FP-16, as which bfloat16 counts; and no device is "
        "faster than its maker says."
    ),
)
def within_peak(e: Evidence) -> Iterator[str]:
    """Matrix operands have the precision that the paper asks for, and no rate is above the devices' peak."""
    precision, of_trials = e.attribute("precision"), e.column("trials", "precision")
    yield f"= {short(precision)}"
    if precision not in PRECISIONS:
        yield f"attribute precision is {short(precision)!r}"
    yield from rows_where("trials", of_trials.astype(str) != precision, "precision is not that of the run")

    ceiling = e.ceiling
    yield from ceiling.disagreements
    if math.isnan(ceiling.total):
        yield f"= {ceiling.source}"
    else:
        share = e.total_ops / e.attribute("core_seconds") / ceiling.total
        yield f"= {share:.3%} of {ceiling.total:.4e} op/s{', declared' if ceiling.declared else ''}"
    if not ceiling.official and e.attribute("class") == "official":
        yield NO_PEAK
    if len(ceiling.bounds):
        yield from _epochs(e, ceiling.bounds)
        yield from _replicas(e, ceiling.bounds)


def _epochs(e: Evidence, peaks: np.ndarray) -> Iterator[str]:
    """Check that no epoch executes more than the devices of its replica can in its time.

    Epochs without a bound pass. Operations are those of the plain network by the paper's tables, for
    failed trials as well.
    """
    known = e.of_trial >= 0
    replica = (
        np.where(known, e.column("trials", "replica")[e.of_trial], 0) if len(known) else np.zeros(0, int)
    )
    seconds = e.column("epochs", "t_end") - e.column("epochs", "t_start")
    possible = peaks[replica] * (seconds + CLOCK_SLACK)
    too_fast = known & (np.array(e.epoch_ops, float) > possible)
    yield from rows_where("epochs", too_fast, "more operations than the devices can execute in its time")


def _replicas(e: Evidence, peaks: np.ndarray) -> Iterator[str]:
    """Check the same for the credited operations of each replica, and so of the run, in the core time."""
    replica = e.column("trials", "replica")
    sums = [0] * len(peaks)
    for row, rows in enumerate(e.own_epochs):
        sums[replica[row]] += sum(e.epoch_credited[epoch] for epoch in rows.tolist())
    core_seconds = e.attribute("core_seconds")
    for number, (ops, peak) in enumerate(zip(sums, peaks.tolist(), strict=True)):
        if ops > peak * core_seconds:
            yield (
                f"replica {number}: {ops / core_seconds:.4e} op/s, but its devices reach {peak:.4e} op/s "
                f"at most"
            )
