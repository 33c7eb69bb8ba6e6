# SPDX-License-Identifier: Apache-2.0
"""An artificial error over hyperparameter cells (kernel x batch), and a history of trials that follow a
method."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.network.morphism import random_chain
from aiperf_mpi.search.cells import Choice
from aiperf_mpi.search.hpo import Hpo, Space, recommend, tune
from aiperf_mpi.search.nas import Proposal
from aiperf_mpi.streams import HPO, stream
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView
from tests.helpers.search.landscape import SMALL
from tests.helpers.trials.twins import ArrayHistory

INITIAL = Architecture(SMALL)

#: Error of a value v in standard deviations of the cells: 0.5 + UNIT v.
UNIT = 0.02

#: Minimum difference between the best and the second cell, in standard deviations of the cells.
GAP = 0.4

#: Warm-up trials before hyperparameters are optimised: three rounds of eight replicas.
WARM_UP = 24


@dataclass(frozen=True)
class CellLandscape:
    """Values of the cells with mean 0 and standard deviation 1; the least is the best.

    A value is the sum of bowls in both directions, an interaction and a rough part. Values are drawn again
    until the best differs from the second by GAP.

    Arguments:
        seed: of the values.
        noise: standard deviation of one trial, in units of that of the cells.
        architectures: standard deviation of the architectures' own effects, in the same unit.
    """

    seed: int
    noise: float
    architectures: float = 0.0

    @cached_property
    def values(self) -> np.ndarray:
        """The value of each cell, float64 [3, 5]."""
        rng = np.random.default_rng((self.seed, 5))
        while True:
            row, column = np.linspace(-1, 1, 3)[:, None], np.linspace(-1, 1, 5)
            a, b, c = rng.uniform(-1, 1, 2), rng.uniform(0.5, 1.5, 2), rng.normal()
            table = b[0] * (row - a[0]) ** 2 + b[1] * (column - a[1]) ** 2 + 0.5 * c * row * column
            table = table + rng.normal(0.0, 0.3, (3, 5))
            table = (table - table.mean()) / table.std()
            least = np.sort(table.ravel())
            if least[1] - least[0] > GAP:
                return table

    def measure(self, candidate: Candidate, space: Space, rng: np.random.Generator) -> float:
        """Return the error of one noisy trial."""
        deeper = sum(morph.op == "deeper" for morph in candidate.architecture.morphs)
        wider = sum(morph.op == "wider" for morph in candidate.architecture.morphs)
        own = self.architectures * ((wider - 0.5 * deeper) / 2.0)
        return 0.5 + UNIT * (self.value(candidate, space) + own + self.noise * float(rng.normal()))

    def value(self, candidate: Candidate, space: Space) -> float:
        """Return the value of a candidate's cell."""
        cell = (space.kernels.index(candidate.kernel_size), space.batches.index(candidate.batch_per_device))
        return float(self.values[cell])


@dataclass
class Study:
    """A growing history: WARM_UP trials of the default cell, then one trial for each suggestion."""

    landscape: CellLandscape
    hpo: Hpo | None
    seed: int
    space: Space = Space()

    def __post_init__(self) -> None:
        self.log, self.cache = ArrayHistory(4096), ArchitectureCache()
        self.chains, self.noise = np.random.default_rng((self.seed, 1)), np.random.default_rng((self.seed, 2))
        for _ in range(WARM_UP):
            self.train(1)

    def view(self) -> HistoryView:
        """Return the current snapshot."""
        self.log.refresh()
        return HistoryView.of(self.log, INITIAL, self.cache)

    def proposal(self) -> Proposal:
        """Return a child of the initial architecture with an own `deeper` that takes a kernel."""
        while True:
            child, own = random_chain(INITIAL, self.chains, int(self.chains.integers(1, 7)))
            if child.own_kernel_morphs(len(own)):
                return Proposal(0, own, child)

    def measured(self, proposal: Proposal, choice: Choice, rng: np.random.Generator) -> float:
        """Return the error of one noisy trial of a proposal with these hyperparameters, without a record."""
        architecture, kernel = tune(proposal, choice)
        candidate = Candidate.new(
            architecture,
            architecture.morphs,
            parent_id=0,
            replica=0,
            generator=0,
            round=4,
            batch_per_device=choice.batch_per_device,
            devices=1,
            seed=0,
            kernel_size=kernel,
        )
        return self.landscape.measure(candidate, self.space, rng)

    def train(self, round: int, end: bool = True) -> Candidate:
        """Propose a trial of a round and, with `end`, end it.

        From the first optimised round on its hyperparameters are suggested by the method.
        """
        view, proposal = self.view(), self.proposal()
        architecture, kernel, batch, own = proposal.architecture, 3, self.space.batches[-2], proposal.morphs
        if not view.length:
            architecture, own = INITIAL, ()
        elif round >= self.space.from_round and self.hpo is not None:
            choice = self.hpo.suggest(view, proposal, stream(HPO, self.seed, 0, 0, view.length)).choice
            (architecture, kernel), batch = tune(proposal, choice), choice.batch_per_device
            own = architecture.morphs
        candidate = Candidate.new(
            architecture,
            own,
            parent_id=0 if view.length else -1,
            replica=0,
            generator=0,
            round=round,
            batch_per_device=batch,
            devices=1,
            seed=0,
            kernel_size=kernel,
        )
        candidate = dataclasses.replace(candidate, trial_id=self.log.append(candidate.to_record(0.0)))
        if end:
            error = self.landscape.measure(candidate, self.space, self.noise)
            self.log.append(candidate.outcome(rec.DONE, 1.0, best_error=error))
        return candidate

    def value(self, candidate: Candidate) -> float:
        """Return the value of a candidate's cell."""
        return self.landscape.value(candidate, self.space)

    def found(self) -> bool:
        """Return whether the recommended cell is the best one."""
        known = recommend(self.view(), self.space.cells(self.proposal()), self.space.from_round)
        if known is None:
            return False
        choice = known.choice
        cell = (
            self.space.kernels.index(choice.kernel_size),
            self.space.batches.index(choice.batch_per_device),
        )
        return bool(self.landscape.values[cell] == self.landscape.values.min())
