# SPDX-License-Identifier: Apache-2.0
"""Neural architecture search: from a snapshot of the history to a parent and the morphs that make its child.

A search is a pure function of the snapshot and of a random stream, so the same seed, history and generator
index give the same proposal on any number of ranks. Nothing is told to it apart from that: what ended, what
failed and what is still pending is all in the snapshot.
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
from aiperf_mpi.trials.record import MAX_OWN_MORPHS
from aiperf_mpi.trials.view import START, HistoryView

#: Parents that are tried before the initial architecture is taken, as one may have grown to the limits.
PARENT_ATTEMPTS = 8


class NoProposal(RuntimeError):
    """No parent can take another morph within the limits."""


@dataclass(frozen=True)
class Proposal:
    """A child that the search proposes.

    Arguments:
        parent_id: trial id of the parent.
        morphs: what leads from the parent to the child, 1 to 8 morphs.
        architecture: the child, with the default kernel in its `deeper` morphs.
    """

    parent_id: int
    morphs: tuple[Morph, ...]
    architecture: Architecture


@dataclass(frozen=True)
class Space:
    """Where the search may go.

    Arguments:
        ops: morph operations in use.
        max_morphs: most morphs from a parent to its child (1 to 8).
        limits: how far an architecture may grow.
    """

    ops: tuple[str, ...] = OPS
    max_morphs: int = MAX_OWN_MORPHS
    limits: Limits = PAPER_LIMITS

    def __post_init__(self) -> None:
        if unknown := set(self.ops) - set(OPS):
            raise ValueError(f"search: morphs {sorted(unknown)} are none of {', '.join(OPS)}")
        if not self.ops:
            raise ValueError("search: no morph operation is in use")
        if not 1 <= self.max_morphs <= MAX_OWN_MORPHS:
            raise ValueError(
                f"search: max_morphs is {self.max_morphs}, but must be from 1 to {MAX_OWN_MORPHS}"
            )


class Search(Protocol):
    """How parents and morphs are chosen."""

    def propose(self, view: HistoryView, rng: np.random.Generator) -> Proposal:
        """A child of a trial in `view`; ask again with the same `rng` if its candidate is claimed already.

        Arguments:
            view: the history; with no finished trial the parent is trial 0, the initial architecture.
            rng: the generator's stream for this length of the history (`streams.stream(SEARCH, ...)`).

        Raises NoProposal if no parent can take another morph.
        """


@dataclass(frozen=True)
class Random:
    """A random chain of morphs behind a uniformly drawn finished trial: the baseline of every comparison.

    Arguments:
        space: where the search may go.
        long: whether chains of 1 to `max_morphs` are all equally likely, as where a surrogate wants to see a
            wide variety first; else short ones are, as mutations should be.
    """

    space: Space = Space()
    long: bool = False

    def propose(self, view: HistoryView, rng: np.random.Generator) -> Proposal:
        """See Search."""

        def parent() -> int:
            return int(view.finished[rng.integers(len(view.finished))]) if len(view.finished) else 0

        return _child_of(view, rng, self.space, parent, self.long)


@dataclass(frozen=True)
class Evolution:
    """Regularised evolution (Real et al., 2019), asynchronous over the history.

    The population are the trials that finished last, so that old ones die whatever their error; the best of a
    random sample of it is the parent, and a random chain of morphs the mutation.

    Arguments:
        space: where the search may go.
        population: trials that are alive.
        sample_size: trials in a tournament.
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
            # A young population has tournaments of its own proportion, or its first good trial would father
            # all.
            size = max(1, self.sample_size * len(alive) // self.population)
            sample = rng.choice(len(alive), size, replace=False)
            return int(alive[sample[np.argmin(values[sample])]])

        return _child_of(view, rng, self.space, parent)


def _child_of(
    view: HistoryView, rng: np.random.Generator, space: Space, parent: Callable[[], int], long: bool = False
) -> Proposal:
    """A random child of the parent that `parent()` draws, of the initial architecture if several cannot
    grow."""
    for attempt in range(PARENT_ATTEMPTS + 1):
        parent_id = parent() if attempt < PARENT_ATTEMPTS else 0
        architecture = view.initial if parent_id == 0 else view.architecture(parent_id)
        longest = space.max_morphs
        length = int(rng.integers(1, longest + 1)) if long else chain_length(rng, longest)
        child, morphs = random_chain(architecture, rng, length, space.ops, space.limits)
        if morphs:
            return Proposal(parent_id, morphs, child)
    raise NoProposal(
        f"search: neither {PARENT_ATTEMPTS} drawn parents nor the initial architecture can take a morph "
        f"of {', '.join(space.ops)} within {space.limits.units} units and {space.limits.parameters} "
        "parameters; raise search.max_units or search.max_parameters"
    )


def chain_length(rng: np.random.Generator, longest: int) -> int:
    """Morphs of a chain: 1 with probability 1/2, 2 with 1/4 and so on, at most `longest`."""
    return min(int(rng.geometric(0.5)), longest)


# -- Bayesian optimisation -------------------------------------------------------------------------


@dataclass(frozen=True)
class Bayesian:
    """The paper's search: network morphism guided by Bayesian optimisation (section 4.1; Jin et al., 2019).

    A Gaussian process learns the errors of the finished trials, pending ones lower its uncertainty, and
    annealing over chains of morphs looks for the child with the best upper confidence bound. How much
    uncertainty counts is drawn for each proposal, so that generators which see the same history go different
    ways. Until `start` trials have ended, children are random.

    Arguments:
        space: where the search may go.
        start: finished trials before the surrogate is asked.
        memory: what is kept between proposals; it makes the same ones, sooner. One thread at a time may use
            it.
    """

    space: Space = Space()
    start: int = START
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def propose(self, view: HistoryView, rng: np.random.Generator) -> Proposal:
        """See Search."""
        if len(view.finished) < self.start:
            return Random(self.space, long=True).propose(view, rng)
        known = learn_from(view, self.start, self.memory)
        moves = Moves(self.space.ops, self.space.max_morphs, self.space.limits)
        process = known.process.imagine([chain.features for chain in known.pending])
        roots = roots_among(process, known.finished, known.eligible, rng)
        for chain in anneal(process, roots, moves, exploration(rng), rng):
            if not known.holds(chain):
                return Proposal(chain.parent_id, chain.morphs, chain.architecture)
        return Random(self.space, long=True).propose(view.of_parents(), rng)


#: The searches by name (`search.method` of the configuration); each takes what `make_search` hands over.
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
    """The search named `method`; raises ValueError that lists the names for another one."""
    if method not in SEARCHES:
        raise ValueError(f"search.method: {method!r} is none of {', '.join(SEARCHES)}")
    return SEARCHES[method](
        Space(tuple(ops), max_morphs, limits), population, sample_size, memory or Memory()
    )
