# SPDX-License-Identifier: Apache-2.0
"""Effects of the hyperparameter cells, estimated from the history.

A candidate trains once, and its error depends mostly on its architecture. The effect of a cell is therefore
the error minus the error that the architecture surrogate expects from all other trials. Both are estimated
together by generalised least squares. The model is: error = effect of the cell + a part that is correlated
between similar architectures, with the covariance that the surrogate has fitted + noise. The surrogate is the
same for every search method. Trials of the warm-up inform about architectures only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import solve_triangular

from aiperf_mpi.search.cells import Cells
from aiperf_mpi.search.distances import tabulate
from aiperf_mpi.search.features import Features
from aiperf_mpi.search.knowledge import MOST_ROWS, Knowledge
from aiperf_mpi.search.surrogate import Process
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.origin import Expectation, expectation
from aiperf_mpi.trials.view import HistoryView

#: Prior variance of an effect, in units of the errors' variance: so large that it hardly shrinks the
#: estimate.
EFFECT_VARIANCE = 100.0

#: A failed trial (diverged, out of memory) counts as FAILED_VALUE standard deviations worse than the average.
#: Otherwise its cell would stay unknown and be tried again and again. The youngest MOST_FAILED failed trials
#: count.
FAILED_VALUE, MOST_FAILED = 3.0, 64

#: Bounds of the estimated noise, relative to the surrogate's own: a few trials must not make it 0.
NOISE_RATIO = (0.02, 4.0)


@dataclass(frozen=True, eq=False)
class Observed:
    """Estimated effects of the cells. Values are errors in the surrogate's units, so the least is best.

    Attributes:
        values: effect of each cell, mean 0 over the trials; 0 if the cell was not observed (float64 [cells]).
        weights: 1 / variance of the effect, 0 if the cell was not observed (float64 [cells]).
        pending: pending trials of each cell (int64 [cells]).
        of_trial: cell of each observed trial (int64 [trials]).
        noise: variance of the noise of one trial.
        level: error of the average architecture with the average effect.
    """

    values: np.ndarray
    weights: np.ndarray
    pending: np.ndarray
    of_trial: np.ndarray
    noise: float
    level: float
    _remainder: np.ndarray
    _rows: np.ndarray
    _process: Process

    @cached_property
    def trial_values(self) -> np.ndarray:
        """Value of each observed trial in standard deviations of the errors, float64 [trials].

        It is the effect of the trial's cell plus the residual that the other trials do not explain
        (leave-one-out). A failed trial has FAILED_VALUE.
        """
        inverse = solve_triangular(
            self._process.lower, np.eye(len(self._process)), lower=True, check_finite=False
        )
        alone = (self._remainder / np.einsum("ij,ij->j", inverse, inverse))[self._rows[self._rows >= 0]]
        failed = np.zeros(np.count_nonzero(self._rows < 0))
        settled = np.where(self._rows >= 0, self.values[self.of_trial], FAILED_VALUE)
        return settled + np.concatenate([alone, failed])

    def expect(self, row: Features, effect: float, deviation: float) -> Expectation | None:
        """Return what is expected of one trial.

        Arguments:
            row: features of its architecture.
            effect, deviation: the expected effect of its cell and its standard deviation, in the units of
                `values`.
        """
        process = self._process
        cross = process.hyper.covariance(tabulate([row], process.plan, process.table), process.table)
        own = (cross @ self._remainder).item()
        # The process was fitted without effects, which took their share of its variance.
        share = self.noise / (process.hyper.noise + process.hyper.signal)
        spread = process.predict([row])[1].item() / process.units.scale
        total = math.sqrt(share * (spread**2 + process.hyper.noise) + deviation**2)
        error = process.units.centre + process.units.scale * (self.level + own + effect)
        return expectation(error, process.units.scale * total)


def observe(view: HistoryView, known: Knowledge, cells: Cells, from_round: int) -> Observed:
    """Estimate the effects of the cells from the history.

    Arguments:
        view: a snapshot of the history.
        known: what the search knows at that snapshot, `knowledge.learn_from`.
        cells: the table. With kernels, only trials with a tuned kernel are observed. The single row observes
            all trials; the effects of their kernels are estimated with it and left out.
        from_round: first round whose trials count.
    """
    process, count = known.process, cells.shape[0] * cells.shape[1]
    design, of_trial, rows = _design(view, known, cells, from_round)

    # Generalised least squares; the process's Cholesky factor whitens the errors.
    half = solve_triangular(
        process.lower, np.column_stack([design, process.values]), lower=True, check_finite=False
    )
    information = half[:, :-1].T @ half[:, :-1]
    prior = np.append(np.full(design.shape[1] - 1, 1.0 / EFFECT_VARIANCE), 1e-9)
    effects = np.linalg.solve(information + np.diag(prior), half[:, :-1].T @ half[:, -1])
    residual = half[:, -1] - half[:, :-1] @ effects

    # The noise follows from the residual, per degree of freedom.
    free = len(process) - np.count_nonzero(np.diag(information) > 0)
    ratio = float(np.clip(residual @ residual / max(free, 1), *NOISE_RATIO))
    weights = np.diag(information)[:count] / ratio
    noise = ratio * (process.hyper.noise + process.hyper.signal)

    # Centre the effects. Then add the failed trials, with FAILED_VALUE for their error; each weighs as much
    # as any other trial.
    values, level = np.where(weights > 0, effects[:count], 0.0), float(effects[-1])
    if of_trial:
        average = float(np.average(values, weights=weights))
        values[weights > 0] -= average
        level += average
    for cell in _failed_cells(view, cells, from_round):
        values[cell] = (weights[cell] * values[cell] + FAILED_VALUE / noise) / (weights[cell] + 1.0 / noise)
        weights[cell] += 1.0 / noise
        of_trial.append(cell)
        rows.append(-1)
    remainder = solve_triangular(process.lower, residual, lower=True, trans="T", check_finite=False)
    return Observed(
        values,
        weights,
        _pending(view, known, cells, from_round),
        np.array(of_trial, np.int64),
        noise,
        level,
        remainder,
        np.array(rows, np.int64),
        process,
    )


def _design(
    view: HistoryView, known: Knowledge, cells: Cells, from_round: int
) -> tuple[np.ndarray, list[int], list[int]]:
    """Return the design matrix (float64 [rows, effects]), and the cell and the row of each observed trial.

    Columns are the cells, then nuisance effects (kernel or batch of the other trials), then the constant
    mean.
    """
    count, row_of = cells.shape[0] * cells.shape[1], _rows_of(known)
    extra = Cells(cells.kernels, cells.batches, False)
    width = max(len(cells.kernels), len(cells.batches))
    design = np.zeros((len(known.process), count + width + 1))
    design[:, -1] = 1.0
    shares = np.bincount(row_of, minlength=len(known.process))
    oldest = len(known.finished) - MOST_ROWS // 3 if len(known.finished) >= MOST_ROWS else 0
    of_trial, rows = [], []
    for place, chain in enumerate(known.finished):
        summary, row = view.summaries[chain.parent_id], row_of[place]
        # In a long history the rows kept as the best are biased by luck, so only the youngest count.
        if summary["round"] < from_round or place < oldest:
            continue
        kernel, batch = int(summary["kernel_size"]), int(summary["batch_per_device"])
        tuned = bool(summary["flags"] & rec.TAKES_KERNEL)
        cell = cells.cell(kernel, batch)
        if tuned or not cells.tunes_kernel:
            if cell >= 0:
                design[row, cell] += 1.0 / shares[row]
                of_trial.append(cell)
                rows.append(int(row))
            if not cells.tunes_kernel and tuned and kernel in cells.kernels:
                design[row, count + cells.kernels.index(kernel)] += 1.0 / shares[row]
        elif (column := extra.cell(kernel, batch)) >= 0:
            design[row, count + column] += 1.0 / shares[row]
    return design, of_trial, rows


def _pending(view: HistoryView, known: Knowledge, cells: Cells, from_round: int) -> np.ndarray:
    """Return the number of pending trials of each cell (int64 [cells])."""
    pending = np.zeros(cells.shape[0] * cells.shape[1], np.int64)
    for chain in known.pending:
        summary = view.summaries[chain.parent_id]
        tuned = bool(summary["flags"] & rec.TAKES_KERNEL)
        cell = cells.cell(int(summary["kernel_size"]), int(summary["batch_per_device"]))
        if summary["round"] >= from_round and cell >= 0 and (tuned or not cells.tunes_kernel):
            pending[cell] += 1
    return pending


def _rows_of(known: Knowledge) -> np.ndarray:
    """Return the row of the process for each finished trial (int64).

    Duplicates among the trials learnt at the last refit share a row.
    """
    rows = known.process.rows
    first: dict[tuple[bytes, int, int], int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row.key, index)
    # Trials appended after the refit have a row each, identified by the features object that the chain holds.
    own = {id(row): index for index, row in enumerate(rows)}
    places = []
    for chain in known.finished:
        places.append(own.get(id(chain.features), first[chain.features.key]))
    return np.array(places, np.int64)


def _failed_cells(view: HistoryView, cells: Cells, from_round: int) -> list[int]:
    """Return the cells of the youngest failed trials."""
    rows = view.summaries
    rows = rows[
        (rows["kind"] == rec.OUTCOME) & (rows["status"] == rec.FAILED) & (rows["round"] >= from_round)
    ]
    rows = rows[-MOST_FAILED:]
    if cells.tunes_kernel:
        rows = rows[(rows["flags"] & rec.TAKES_KERNEL) > 0]
    failed = [cells.cell(int(row["kernel_size"]), int(row["batch_per_device"])) for row in rows]
    return [cell for cell in failed if cell >= 0]
