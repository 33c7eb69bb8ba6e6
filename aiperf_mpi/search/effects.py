# SPDX-License-Identifier: Apache-2.0
"""What the history says of each cell of hyperparameters.

A candidate trains once, and its error is mostly its architecture's. What counts for a cell is therefore the
error less what the surrogate of the architecture search expects from all other trials. Both are estimated
together, by generalised least squares: the errors are the effects of the cells, plus something that is
correlated between similar architectures as the surrogate has learnt it, plus noise. The baseline is the same
surrogate whatever the search. Trials of the warm-up tell about architectures alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import solve_triangular

from aiperf_mpi.search.cells import Cells
from aiperf_mpi.search.knowledge import MOST_ROWS, Knowledge
from aiperf_mpi.search.surrogate import Process
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.view import HistoryView

#: Variance that an effect may have over that of the errors: so large that it takes nothing from what was
#: observed.
EFFECT_VARIANCE = 100.0

#: A trial that failed (diverged, out of memory) counts as that many standard deviations worse than the
#: average, or its cell would stay unknown and be tried for ever; failed trials that are looked at, the
#: youngest.
FAILED_VALUE, MOST_FAILED = 3.0, 64

#: Bounds of the estimated noise over what the surrogate takes for noise: few trials must not make it 0.
NOISE_RATIO = (0.02, 4.0)


@dataclass(frozen=True, eq=False)
class Observed:
    """What is known of the cells; values are errors, so the least is best, in the surrogate's units.

    Attributes:
        values: effect of each cell, mean 0 over its trials; 0 where nothing was observed (float64 [cells]).
        weights: 1 / variance of that, 0 where nothing was observed (float64 [cells]).
        pending: proposed, unfinished trials of each cell (int64 [cells]).
        of_trial: cell of each observed trial (int64 [trials]).
        noise: variance of the noise of one trial.
    """

    values: np.ndarray
    weights: np.ndarray
    pending: np.ndarray
    of_trial: np.ndarray
    noise: float
    _remainder: np.ndarray
    _rows: np.ndarray
    _process: Process

    @cached_property
    def trial_values(self) -> np.ndarray:
        """Of each observed trial its cell's effect and what the other trials leave unexplained (float64
        [trials])."""
        inverse = solve_triangular(
            self._process.lower, np.eye(len(self._process)), lower=True, check_finite=False
        )
        alone = (self._remainder / np.einsum("ij,ij->j", inverse, inverse))[self._rows[self._rows >= 0]]
        failed = np.zeros(np.count_nonzero(self._rows < 0))
        settled = np.where(self._rows >= 0, self.values[self.of_trial], FAILED_VALUE)
        return settled + np.concatenate([alone, failed])


def observe(view: HistoryView, known: Knowledge, cells: Cells, from_round: int) -> Observed:
    """What the history says of the cells.

    Arguments:
        view: a snapshot of the history.
        known: what the search knows at it, `knowledge.learn_from`.
        cells: which table; the one with kernels is told by trials with a tuned kernel alone, the single row
            by all (the effects of their kernels are estimated beside it, and left out).
        from_round: first round whose trials count.
    """
    process, count = known.process, cells.shape[0] * cells.shape[1]
    design, of_trial, rows = _design(view, known, cells, from_round)

    # Generalised least squares, where the factor of the process whitens the errors.
    half = solve_triangular(
        process.lower, np.column_stack([design, process.values]), lower=True, check_finite=False
    )
    information = half[:, :-1].T @ half[:, :-1]
    prior = np.append(np.full(design.shape[1] - 1, 1.0 / EFFECT_VARIANCE), 1e-9)
    effects = np.linalg.solve(information + np.diag(prior), half[:, :-1].T @ half[:, -1])
    left = half[:, -1] - half[:, :-1] @ effects
    free = len(process) - np.count_nonzero(np.diag(information) > 0)
    ratio = float(np.clip(left @ left / max(free, 1), *NOISE_RATIO))
    weights = np.diag(information)[:count] / ratio
    noise = ratio * (process.hyper.noise + process.hyper.signal)

    # Failed trials have no error; what they say is as certain as any other trial's word.
    values = np.where(weights > 0, effects[:count], 0.0)
    if of_trial:
        values[weights > 0] -= np.average(values, weights=weights)
    for cell in _failed_cells(view, cells, from_round):
        values[cell] = (weights[cell] * values[cell] + FAILED_VALUE / noise) / (weights[cell] + 1.0 / noise)
        weights[cell] += 1.0 / noise
        of_trial.append(cell)
        rows.append(-1)
    remainder = solve_triangular(process.lower, left, lower=True, trans="T", check_finite=False)
    return Observed(
        values,
        weights,
        _pending(view, known, cells, from_round),
        np.array(of_trial, np.int64),
        noise,
        remainder,
        np.array(rows, np.int64),
        process,
    )


def _design(
    view: HistoryView, known: Knowledge, cells: Cells, from_round: int
) -> tuple[np.ndarray, list[int], list[int]]:
    """Which effects are in the value of each row of the process (float64 [rows, effects]): the cells, then
    what is not asked for, kernel or batch of the other trials, and the constant mean. Beside it, of each
    observed trial its cell and its row."""
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
        # Of a long history those that were chosen as the best ones would tell of their luck: the youngest
        # count.
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
    """Proposed, unfinished trials of each cell (int64 [cells])."""
    pending = np.zeros(cells.shape[0] * cells.shape[1], np.int64)
    for chain in known.pending:
        summary = view.summaries[chain.parent_id]
        tuned = bool(summary["flags"] & rec.TAKES_KERNEL)
        cell = cells.cell(int(summary["kernel_size"]), int(summary["batch_per_device"]))
        if summary["round"] >= from_round and cell >= 0 and (tuned or not cells.tunes_kernel):
            pending[cell] += 1
    return pending


def _rows_of(known: Knowledge) -> np.ndarray:
    """The row of the process for each finished trial: duplicates among those learnt at the anchor share one
    (int64)."""
    rows = known.process.rows
    first: dict[tuple[bytes, int, int], int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row.key, index)
    # Those appended behind the anchor have a row each: the very object that the chain holds.
    own = {id(row): index for index, row in enumerate(rows)}
    places = []
    for chain in known.finished:
        places.append(own.get(id(chain.features), first[chain.features.key]))
    return np.array(places, np.int64)


def _failed_cells(view: HistoryView, cells: Cells, from_round: int) -> list[int]:
    """The cells of the youngest failed trials."""
    rows = view.summaries
    rows = rows[
        (rows["kind"] == rec.OUTCOME) & (rows["status"] == rec.FAILED) & (rows["round"] >= from_round)
    ]
    rows = rows[-MOST_FAILED:]
    if cells.tunes_kernel:
        rows = rows[(rows["flags"] & rec.TAKES_KERNEL) > 0]
    found = [cells.cell(int(row["kernel_size"]), int(row["batch_per_device"])) for row in rows]
    return [cell for cell in found if cell >= 0]
