# SPDX-License-Identifier: Apache-2.0
"""What chose the candidates: how many each part of the search, and what it expected against what came."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from aiperf_mpi.printable import counted, plain
from aiperf_mpi.results.evidence.choices import by_models, by_surrogate_or_hpo, observed_errors
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.judge.judge import Verdict
from aiperf_mpi.results.report.details import columns_of
from aiperf_mpi.trials.origin import CHOSEN_BY, TUNED_BY

#: Most candidates that are listed, the latest ones.
MAX_LISTED = 40

#: Where the observed error lies with probability 0.95, in standard deviations, if the model is right.
INSIDE = 1.96


def choices(e: Evidence, verdict: Verdict) -> Iterator[RenderableType]:
    """Show what chose the trained candidates, and for those of the surrogate and the optimiser the expected
    and the observed error.

    Yield one line if the file does not say what chose a candidate.
    """
    if by_models(e) is None:
        yield Text("  not recorded: this result was written by an earlier version")
        return
    yield Text(f"  networks: {_counts(e, 'chosen_by', CHOSEN_BY)}")
    yield Text(f"  hyperparameters: {_counts(e, 'tuned_by', TUNED_BY)}")

    rows = np.flatnonzero(e.trained & by_surrogate_or_hpo(e))
    if not len(rows):
        yield Text(
            "  neither the surrogate nor the optimiser chose a trained candidate: too few trials ended"
        )
        return
    if len(rows) > MAX_LISTED:
        yield Text(f"  the latest {MAX_LISTED} of {counted(len(rows), 'candidate')} that they chose")
    columns, observed = e.table("trials"), observed_errors(e)
    table = columns_of(
        "trial",
        "round",
        "network by",
        "tuned by",
        "kernel",
        "batch",
        "expected error",
        "deviation",
        "observed",
        "off by",
        "in deviations",
        left=("network by", "tuned by"),
    )
    for row in rows[-MAX_LISTED:].tolist():
        table.add_row(
            *(str(columns[name][row]) for name in ("trial_id", "round")),
            *(plain(columns[name][row]) for name in ("chosen_by", "tuned_by")),
            *(str(columns[name][row]) for name in ("kernel_size", "batch_per_device")),
            *_comparison(
                columns["expected_error"][row], columns["expected_deviation"][row], float(observed[row])
            ),
        )
    yield table
    yield from _summary(e, rows, observed)


def _counts(e: Evidence, column: str, names: tuple[str, ...]) -> str:
    """Return how many trained candidates each part of the search chose, in words."""
    values = e.column("trials", column)[e.trained]
    known = [(int((values == name).sum()), name) for name in names if name]
    return ", ".join(f"{count} by {name}" for count, name in known if count) or "no candidate was trained"


def _comparison(expected: float, deviation: float, observed: float) -> tuple[str, ...]:
    """Return the cells of expectation, deviation, observation and their difference; - for what is not
    known."""
    off = observed - expected
    errors = (f"{value:.4f}" if math.isfinite(value) else "-" for value in (expected, deviation, observed))
    shown = (f"{off:+.4f}", f"{off / deviation:+.1f}") if math.isfinite(off) and deviation > 0 else ("-", "-")
    return *errors, *shown


def _summary(e: Evidence, rows: np.ndarray, observed: np.ndarray) -> Iterator[RenderableType]:
    """Say how often the observed errors were where they were expected."""
    expected, deviation = (e.column("trials", f"expected_{name}")[rows] for name in ("error", "deviation"))
    told = np.isfinite(observed[rows] - expected) & (deviation > 0)
    known = (observed[rows] - expected)[told] / deviation[told]
    if len(known):
        inside = int((np.abs(known) <= INSIDE).sum())
        yield Text(
            f"  {inside} of {len(known)} observed errors are within {INSIDE} standard deviations of what was "
            "expected; 95 % would be if the models were right."
        )
    yield Text(
        "  The deviation is that of one trial, noise included. The observed error is the one that the search "
        "learns from: predicted from the learning curve in the rounds of the warm-up, otherwise the best."
    )
