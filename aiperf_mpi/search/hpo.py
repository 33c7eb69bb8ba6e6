# SPDX-License-Identifier: Apache-2.0
"""Hyperparameter optimisation: batch size per device and kernel size of a candidate.

The kernel size is that of the convolutions which the candidate's own `deeper` morphs add. Both are optimised
from the fourth round of a replica (sections 4.2 and 4.5 of the paper).

The kernel is part of the network, of its hash and of its operation count. If no own `deeper` takes a kernel,
that dimension is dropped and the candidate keeps the default. This is so if there is no `deeper`, or if a
kernel morph grows it. A suggestion is a pure function of the snapshot, the proposal and the random stream.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from aiperf_mpi.network.architecture import DEFAULT_KERNEL, Architecture
from aiperf_mpi.network.morphism import PAPER_LIMITS, Limits
from aiperf_mpi.paper import BATCHES, FROM_ROUND, KERNELS
from aiperf_mpi.search import tpe
from aiperf_mpi.search.cells import Cells, Choice
from aiperf_mpi.search.effects import Observed, observe
from aiperf_mpi.search.features import features
from aiperf_mpi.search.knowledge import Memory, learn_from
from aiperf_mpi.search.nas import Proposal
from aiperf_mpi.trials.origin import OPTIMISER, Expectation
from aiperf_mpi.trials.record import PROPOSED, TAKES_KERNEL
from aiperf_mpi.trials.view import DESIGN, START, HistoryView

#: Exploration weight of the lower confidence bound: LEAST_EXPLORATION plus a draw from an exponential
#: distribution of mean EXPLORATION for each suggestion, so that generators with the same history differ.
LEAST_EXPLORATION, EXPLORATION = 1.0, 1.0

#: Bounds of the process over cells: standard deviation of the effects in units of that of the errors, and
#: length scales in units of a whole dimension. They keep a likelihood of few cells from an extreme.
EFFECT_SPREAD, LENGTHS = (0.05, 3.0), (0.2, 1.0)

#: Standard deviation of the effects and length scale of the process until all cells are observed, in the
#: units of the bounds. A likelihood of a few cells makes generators agree on the best of them for good.
PRIOR_EFFECT, PRIOR_LENGTH = 1.0, 0.5

#: Points, for each cell of the table, at which skopt evaluates the acquisition function. It draws them at
#: random, so it misses one of 15 cells with probability exp(-64).
POINTS_PER_CELL = 64


@dataclass(frozen=True)
class Space:
    """The hyperparameters that may be chosen, and the first optimised round.

    Arguments:
        kernels: kernel sizes to choose from.
        batches: batch sizes per device to choose from.
        from_round: first optimised round, and the first whose trials are observed.
    """

    kernels: tuple[int, ...] = KERNELS
    batches: tuple[int, ...] = BATCHES
    from_round: int = FROM_ROUND

    def __post_init__(self) -> None:
        if not self.kernels or not self.batches:
            raise ValueError("hpo: the sets of kernels and batches must not be empty")
        object.__setattr__(self, "kernels", tuple(sorted({int(kernel) for kernel in self.kernels})))
        object.__setattr__(self, "batches", tuple(sorted({int(batch) for batch in self.batches})))

    def cells(self, proposal: Proposal) -> Cells:
        """Return the table of cells for a proposal."""
        tunes_kernel = bool(proposal.architecture.own_kernel_morphs(len(proposal.morphs)))
        return Cells(self.kernels, self.batches, tunes_kernel)


@dataclass(frozen=True)
class Suggestion:
    """A suggested cell.

    Arguments:
        choice: the hyperparameters.
        tuned_by: what chose them, a name of `origin.TUNED_BY`.
        expected: the error that the optimiser expects of the proposal with them; None if it was not asked.
    """

    choice: Choice
    tuned_by: str
    expected: Expectation | None = None


class Hpo(Protocol):
    """A method that chooses hyperparameters."""

    def suggest(self, view: HistoryView, proposal: Proposal, rng: np.random.Generator) -> Suggestion:
        """Return a cell to train `proposal` with. It explores; `recommend` returns the best known cell.

        `rng` is the stream `streams.stream(HPO, ...)` of this history length.
        """


@dataclass(frozen=True)
class RandomHpo:
    """Choose a cell uniformly at random."""

    space: Space = Space()

    def suggest(self, view: HistoryView, proposal: Proposal, rng: np.random.Generator) -> Suggestion:
        """See Hpo."""
        cells = self.space.cells(proposal)
        return Suggestion(cells.choice(int(rng.integers(cells.shape[0] * cells.shape[1]))), "random")


@dataclass(frozen=True)
class GridHpo:
    """Choose the cell proposed least often since the first optimised round, a random one of equals."""

    space: Space = Space()

    def suggest(self, view: HistoryView, proposal: Proposal, rng: np.random.Generator) -> Suggestion:
        """See Hpo."""
        cells = self.space.cells(proposal)
        tried = _proposed(view, cells, self.space.from_round)
        return Suggestion(cells.choice(int(rng.choice(np.flatnonzero(tried == tried.min())))), "grid")


@dataclass(frozen=True)
class LearningHpo:
    """Learn the effects of the cells from the trials.

    Arguments:
        explore: returns the cell to try next, given the observed effects.
        space: the hyperparameters that may be chosen.
        memory: what is kept between suggestions; sharing the search's own avoids fitting the surrogate twice.
    """

    explore: Callable[[Cells, Observed, np.random.Generator], int]
    space: Space = Space()
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def suggest(self, view: HistoryView, proposal: Proposal, rng: np.random.Generator) -> Suggestion:
        """See Hpo."""
        cells, from_round = self.space.cells(proposal), self.space.from_round
        observed = _observed(view, cells, from_round, self.memory)
        begun = np.count_nonzero(_optimised(view, from_round))
        if observed is None or not observed.weights.any() or begun < DESIGN:
            return Suggestion(cells.choice(_design(view, proposal, cells, from_round, rng)), "design")
        cell = self.explore(cells, observed, rng)
        return Suggestion(cells.choice(cell), OPTIMISER, _expect(cells, observed, proposal, cell))


def lowest_bound(cells: Cells, observed: Observed, rng: np.random.Generator) -> int:
    """Return the cell to try next: the one with the lowest confidence bound of the error.

    The bound is of a Gaussian process over the cells (scikit-optimize).
    """
    kappa = LEAST_EXPLORATION + float(rng.exponential(EXPLORATION))
    return _ask(cells, observed, kappa, rng)


@dataclass(frozen=True)
class Known:
    """The best known cell, the number of observed trials of it, and of any cell."""

    choice: Choice
    trials: int
    observed: int


def recommend(
    view: HistoryView, cells: Cells, from_round: int = FROM_ROUND, memory: Memory | None = None
) -> Known | None:
    """Return the best known cell of a table: the least posterior mean, whatever method chose the trials.

    Return None until a trial of an optimised round has ended.
    """
    observed = _observed(view, cells, from_round, memory or Memory())
    if observed is None or not observed.weights.any():
        return None
    means = _fitted(cells, observed).predict(_positions(cells))
    best = int(np.argmin(np.round(means, 9)))
    return Known(cells.choice(best), int(np.count_nonzero(observed.of_trial == best)), len(observed.of_trial))


# -- the start -------------------------------------------------------------------------------------


def _observed(view: HistoryView, cells: Cells, from_round: int, memory: Memory) -> Observed | None:
    """Return the observed effects of the cells, None until the surrogate has enough finished trials."""
    if len(view.finished) < START:
        return None
    return observe(view, learn_from(view, START, memory), cells, from_round)


def _design(
    view: HistoryView, proposal: Proposal, cells: Cells, from_round: int, rng: np.random.Generator
) -> int:
    """Return a cell of the design: a random one of those that were proposed least often.

    If all of the design is proposed, but no trial of it has ended, the cell is the parent's with probability
    1/2, as it is the best one known.
    """
    tried = _proposed(view, cells, from_round)
    if tried.sum() >= DESIGN and view.length > proposal.parent_id:
        parent = view.summaries[proposal.parent_id]
        cell = cells.cell(int(parent["kernel_size"]), int(parent["batch_per_device"]))
        if cell >= 0 and rng.random() < 0.5:
            return cell
    return int(rng.choice(np.flatnonzero(tried == tried.min())))


def _optimised(view: HistoryView, from_round: int) -> np.ndarray:
    """Return whether each row of the history proposes a trial of an optimised round (bool [rows])."""
    return (view.summaries["kind"] == PROPOSED) & (view.summaries["round"] >= from_round)


def _proposed(view: HistoryView, cells: Cells, from_round: int) -> np.ndarray:
    """Return how often each cell was proposed (int64 [cells]), from the columns of the summaries alone.

    The table with kernels leaves out trials that could not take a kernel.
    """
    rows = view.summaries[_optimised(view, from_round)]
    if cells.tunes_kernel:
        rows = rows[(rows["flags"] & TAKES_KERNEL) > 0]
    choices = [cells.choice(cell) for cell in range(cells.shape[0] * cells.shape[1])]
    return np.array(
        [
            np.count_nonzero(
                (rows["batch_per_device"] == choice.batch_per_device)
                & ((rows["kernel_size"] == choice.kernel_size) | (not cells.tunes_kernel))
            )
            for choice in choices
        ]
    )


# -- the process over cells ------------------------------------------------------------------------


def _positions(cells: Cells) -> np.ndarray:
    """Return the position of each cell, 0 to 1 in each dimension with more than one value.

    float64 [cells, dimensions].
    """
    axes = [np.linspace(0.0, 1.0, count) for count in cells.shape if count > 1]
    count = cells.shape[0] * cells.shape[1]
    return (
        np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(count, -1) if axes else np.zeros((1, 1))
    )


def _process(cells: Cells, noise: np.ndarray, kernel: Any = None) -> Any:
    """Return skopt's process with the noise of each observed cell.

    Its hyperparameters are fitted once all cells are observed, unless a kernel with fixed ones is given.
    """
    from skopt.learning import GaussianProcessRegressor
    from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern

    lengths = np.ones(_positions(cells).shape[1])
    if kernel is None and len(noise) < len(_positions(cells)):
        kernel = ConstantKernel(PRIOR_EFFECT**2) * Matern(PRIOR_LENGTH * lengths, nu=2.5)
    if kernel is not None:
        return GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
    low, high = EFFECT_SPREAD
    kernel = ConstantKernel(0.25, (low**2, high**2)) * Matern(lengths, LENGTHS, nu=2.5)
    return GaussianProcessRegressor(kernel, alpha=noise)


def _fitted(cells: Cells, observed: Observed) -> Any:
    """Return the process fitted to the observed cells, each once, with the noise of its mean."""
    seen = np.flatnonzero(observed.weights)
    process = _process(cells, 1.0 / observed.weights[seen])
    with warnings.catch_warnings():
        # With few cells a length scale often ends at its bound, as intended.
        warnings.simplefilter("ignore")
        return process.fit(_positions(cells)[seen], observed.values[seen])


def _expect(cells: Cells, observed: Observed, proposal: Proposal, cell: int) -> Expectation | None:
    """Return what is expected of a proposal with the hyperparameters of a cell."""
    effect, deviation = _fitted(cells, observed).predict(_positions(cells)[[cell]], return_std=True)
    tuned, _ = tune(proposal, cells.choice(cell))
    return observed.expect(features(tuned), float(effect[0]), float(deviation[0]))


def _imagined(cells: Cells, observed: Observed) -> tuple[Any, np.ndarray, np.ndarray]:
    """Imagine the pending trials: return the fitted process, and each cell's value and weight (float64
    [cells]).

    Each pending trial counts as if it had ended with the process's expectation. This changes no expectation
    and lowers the uncertainty.
    """
    fitted, more = _fitted(cells, observed), observed.pending / observed.noise
    weights = observed.weights + more
    sums = observed.weights * observed.values + more * fitted.predict(_positions(cells))
    return fitted, np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0), weights


def _ask(cells: Cells, observed: Observed, kappa: float, rng: np.random.Generator) -> int:
    """Return the cell that skopt suggests.

    skopt gets each cell once; pending trials count with the process's expectation. Only finite means are
    passed on: skopt would store a NaN and fail on every later call. Duplicates are allowed, as skopt would
    replace them by random points. A new optimiser is made for each suggestion, so that its cost does not grow
    with the trials.
    """
    from skopt import Optimizer
    from skopt.space import Integer

    dimensions = [Integer(0, count - 1) for count in cells.shape if count > 1]
    if not dimensions:
        return 0
    fitted, values, weights = _imagined(cells, observed)
    seen = np.flatnonzero(weights > 0)
    values, weights = values[seen], weights[seen]
    if not np.isfinite(values).all():
        raise ValueError("hpo: the effect of a cell is not finite")

    table = [
        [
            index
            for index, count in zip(divmod(int(cell), cells.shape[1]), cells.shape, strict=True)
            if count > 1
        ]
        for cell in seen
    ]
    optimiser = Optimizer(
        dimensions,
        base_estimator=_process(cells, 1.0 / weights, fitted.kernel_),
        n_initial_points=1,
        acq_func="LCB",
        acq_func_kwargs={"kappa": kappa},
        acq_optimizer="sampling",
        random_state=int(rng.integers(2**31)),
        acq_optimizer_kwargs={"n_points": POINTS_PER_CELL * cells.shape[0] * cells.shape[1]},
        model_queue_size=1,
        avoid_duplicates=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimiser.tell(table, [float(value) for value in values])
        asked = [int(index) for index in optimiser.ask()]
    row = asked[0] if cells.shape[0] > 1 else 0
    return row * cells.shape[1] + (asked[-1] if cells.shape[1] > 1 else 0)


# -- by name ---------------------------------------------------------------------------------------

#: The optimisers by name (`hpo.method` of the configuration).
OPTIMISERS: dict[str, Callable[[Space, Memory], Hpo]] = {
    "bayesian": lambda space, memory: LearningHpo(lowest_bound, space, memory),
    "tpe": lambda space, memory: LearningHpo(tpe.ask, space, memory),
    "grid": lambda space, memory: GridHpo(space),
    "random": lambda space, memory: RandomHpo(space),
}


def make_hpo(
    method: str,
    *,
    kernels: Sequence[int] = KERNELS,
    batches: Sequence[int] = BATCHES,
    from_round: int = FROM_ROUND,
    memory: Memory | None = None,
) -> Hpo:
    """Return the optimiser named `method`.

    Raises ValueError for an unknown name, an empty set of values, or a missing library.
    """
    if method not in OPTIMISERS:
        raise ValueError(f"hpo.method: {method!r} is none of {', '.join(OPTIMISERS)}")
    if method == "tpe" and (problem := tpe.missing()):
        raise ValueError(problem)
    return OPTIMISERS[method](Space(tuple(kernels), tuple(batches), from_round), memory or Memory())


def tune(proposal: Proposal, choice: Choice, limits: Limits = PAPER_LIMITS) -> tuple[Architecture, int]:
    """Return the proposal's network with the chosen kernel, and the kernel size that it has then.

    The default kernel stays if no own `deeper` takes another one, or if the chosen one would exceed the
    limits.
    """
    own = len(proposal.morphs)
    if not proposal.architecture.own_kernel_morphs(own):
        return proposal.architecture, DEFAULT_KERNEL
    tuned = proposal.architecture.with_own_kernel(own, choice.kernel_size)
    return (tuned, choice.kernel_size) if limits.allow(tuned) else (proposal.architecture, DEFAULT_KERNEL)
