# SPDX-License-Identifier: Apache-2.0
"""Neural architecture search: from a snapshot of the history to a parent and the morphs that make its child.

A search is a pure function of the snapshot and of a random stream. The same seed, history and generator index
give the same proposal on any number of ranks. The snapshot is the only input: it shows which trials have
ended, failed or are pending.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from aiperf_mpi.network.architecture import OPS, Architecture, Morph
from aiperf_mpi.network.morphism import PAPER_LIMITS, Limits, random_chain
from aiperf_mpi.search.acquisition import Moves, anneal, exploration, roots_among
from aiperf_mpi.search.knowledge import Memory, learn_from
from aiperf_mpi.trials.origin import SURROGATE, Expectation
from aiperf_mpi.trials.record import MAX_OWN_MORPHS
from aiperf_mpi.trials.view import START, HistoryView

#: Parents tried before the initial architecture is used instead: a parent may have grown to the limits.
PARENT_ATTEMPTS = 8


class NoProposal(RuntimeError):
    """No parent can take another morph within the limits."""


@dataclass(frozen=True)
class Proposal:
    """A child that the search proposes.

    Arguments:
        parent_id: trial id of the parent.
        morphs: the 1 to 8 morphs that lead from the parent to the child.
        architecture: the child, with the default kernel in its `deeper` morphs.
        chosen_by: what chose it, a name of `origin.CHOSEN_BY`.
        expected: the error that the surrogate expects of it; None if it was not asked.
    """

    parent_id: int
    morphs: tuple[Morph, ...]
    architecture: Architecture
    chosen_by: str = ""
    expected: Expectation | None = None


@dataclass(frozen=True)
class Space:
    """The search space.

    Arguments:
        ops: morph operations in use.
        max_morphs: maximum number of morphs from a parent to its child (1 to 8).
        limits: how far an architecture may grow.
    """

    ops: tuple[str, ...] = OPS
    max_morphs: int = MAX_OWN_MORPHS
    limits: Limits = PAPER_LIMITS

    def __post_init__(self) -> None:
        if unknown := set(self.ops) - set(OPS):
            raise ValueError(f"search: morphs {sorted(unknown)} are not among {', '.join(OPS)}")
        if not self.ops:
            raise ValueError("search: no morph operation is in use")
        if not 1 <= self.max_morphs <= MAX_OWN_MORPHS:
            raise ValueError(
                f"search: max_morphs is {self.max_morphs}, but must be from 1 to {MAX_OWN_MORPHS}"
            )


class Search(Protocol):
    """A method that chooses parents and morphs."""

    def propose(self, view: HistoryView, rng: np.random.Generator) -> Proposal:
        """Return a child of a trial in `view`. To get another child, call again with the same `rng`.

        Arguments:
            view: the history; without a finished trial the parent is trial 0, the initial architecture.
            rng: the generator's stream for this length of the history (`streams.stream(SEARCH, ...)`).

        Raises NoProposal if no parent can take another morph.
        """


@dataclass(frozen=True)
class Random:
    """Random search, the baseline: a random chain of morphs on a uniformly drawn finished trial.

    Arguments:
        space: the search space.
        design: whether it makes the design of a surrogate. Chain lengths of 1 to `max_morphs` are then
            equally likely, so that the first data are varied. Otherwise short chains are more likely, as for
            mutations.
    """

    space: Space = Space()
    design: bool = False

    def propose(self, view: HistoryView, rng: np.random.Generator) -> Proposal:
        """See Search."""

        def parent() -> int:
            return int(view.finished[rng.integers(len(view.finished))]) if len(view.finished) else 0

        return _child_of(view, rng, self.space, parent, "design" if self.design else "random", self.design)


@dataclass(frozen=True)
class Evolution:
    """Regularised evolution (Real et al., 2019), asynchronous over the history.

    The population is the trials that finished last, so old ones leave it whatever their error. The best of a
    random sample is the parent; a random chain of morphs is the mutation.

    Arguments:
        space: the search space.
        population: number of trials in the population.
        sample_size: number of trials in a tournament.
    """

    space: Space = Space()
    population: int = 100
    sample_size: int = 25

    def __post_init__(self) -> None:
        if not 1 <= self.sample_size <= self.population:
            raise ValueError(
                f"search: sample_size is {self.sample_size}, but must be from 1 to the population of "
                f"{self.population}"
            )

    def propose(self, view: HistoryView, rng: np.random.Generator) -> Proposal:
        """See Search."""
        alive = view.finished[-self.population :]
        values = view.values[-self.population :]

        def parent() -> int:
            if not len(alive):
                return 0
            # Scale the tournament to a young population; otherwise its first good trial would become the only
            # parent.
            size = max(1, self.sample_size * len(alive) // self.population)
            sample = rng.choice(len(alive), size, replace=False)
            return int(alive[sample[np.argmin(values[sample])]])

        return _child_of(view, rng, self.space, parent, "evolution")


def _child_of(
    view: HistoryView,
    rng: np.random.Generator,
    space: Space,
    parent: Callable[[], int],
    chosen_by: str,
    long: bool = False,
) -> Proposal:
    """Return a random child of the parent that `parent()` draws; `long` as `Random.design` says.

    If several drawn parents cannot grow, the parent is the initial architecture.
    """
    for attempt in range(PARENT_ATTEMPTS + 1):
        parent_id = parent() if attempt < PARENT_ATTEMPTS else 0
        architecture = view.initial if parent_id == 0 else view.architecture(parent_id)
        longest = space.max_morphs
        length = int(rng.integers(1, longest + 1)) if long else chain_length(rng, longest)
        child, morphs = random_chain(architecture, rng, length, space.ops, space.limits)
        if morphs:
            return Proposal(parent_id, morphs, child, chosen_by)
    raise NoProposal(
        f"search: neither {PARENT_ATTEMPTS} drawn parents nor the initial architecture can take a morph "
        f"of {', '.join(space.ops)} within {space.limits.units} units and {space.limits.parameters} "
        "parameters; raise search.max_units or search.max_parameters"
    )


def chain_length(rng: np.random.Generator, longest: int) -> int:
    """Draw the length of a chain: 1 with probability 1/2, 2 with 1/4 and so on, at most `longest`."""
    return min(int(rng.geometric(0.5)), longest)


# -- Bayesian optimisation -------------------------------------------------------------------------


@dataclass(frozen=True)
class Bayesian:
    """The paper's search: network morphism guided by Bayesian optimisation (section 4.1; Jin et al., 2019).

    A Gaussian process learns the errors of the finished trials; pending trials lower its uncertainty.
    Annealing over chains of morphs maximises the upper confidence bound of the accuracy. The exploration
    weight is drawn for each proposal, so that generators with the same history differ. Until `start` trials
    have ended, children are random.

    Arguments:
        space: the search space.
        start: finished trials needed before the surrogate is used.
        memory: what is kept between proposals; it changes no proposal, but saves time. Not thread-safe.
    """

    space: Space = Space()
    start: int = START
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def propose(self, view: HistoryView, rng: np.random.Generator) -> Proposal:
        """See Search."""
        if len(view.finished) < self.start:
            return Random(self.space, design=True).propose(view, rng)
        known = learn_from(view, self.start, self.memory)
        moves = Moves(self.space.ops, self.space.max_morphs, self.space.limits)
        process = known.process.imagine([chain.features for chain in known.pending])
        roots = roots_among(process, known.finished, known.eligible, rng)
        for chain in anneal(process, roots, moves, exploration(rng), rng):
            if not known.holds(chain):
                expected = known.process.expect(chain.features)
                return Proposal(chain.parent_id, chain.morphs, chain.architecture, SURROGATE, expected)
        return Random(self.space, design=True).propose(view.of_parents(), rng)


#: The searches by name (`search.method` of the configuration); each is called by `make_search`.
SEARCHES: dict[str, Callable[[Space, int, int, Memory], Search]] = {
    "bayesian": lambda space, population, sample_size, memory: Bayesian(space, memory=memory),
    "evolution": lambda space, population, sample_size, memory: Evolution(space, population, sample_size),
    "random": lambda space, population, sample_size, memory: Random(space),
}


def make_search(
    method: str,
    *,
    ops: Sequence[str] = OPS,
    max_morphs: int = MAX_OWN_MORPHS,
    limits: Limits = PAPER_LIMITS,
    population: int = 100,
    sample_size: int = 25,
    memory: Memory | None = None,
) -> Search:
    """Return the search named `method`. Raises ValueError, which lists the names, for an unknown one."""
    if method not in SEARCHES:
        raise ValueError(f"search.method: {method!r} is none of {', '.join(SEARCHES)}")
    return SEARCHES[method](
        Space(tuple(ops), max_morphs, limits), population, sample_size, memory or Memory()
    )
