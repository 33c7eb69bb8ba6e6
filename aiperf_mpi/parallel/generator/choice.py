# SPDX-License-Identifier: Apache-2.0
"""How a generator chooses a candidate: the search proposes a child of a trial, HPO its hyperparameters."""

from __future__ import annotations

import numpy as np

from aiperf_mpi.config import Config
from aiperf_mpi.network.architecture import DEFAULT_KERNEL
from aiperf_mpi.network.morphism import Limits
from aiperf_mpi.parallel.generator.vacancies import Vacancy
from aiperf_mpi.search.hpo import Hpo, make_hpo, tune
from aiperf_mpi.search.knowledge import Memory
from aiperf_mpi.search.nas import Proposal, Search, make_search
from aiperf_mpi.streams import HPO, SEARCH, stream
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.origin import Origin
from aiperf_mpi.trials.view import HistoryView


def choose_candidate(
    config: Config,
    search: Search,
    hpo: Hpo,
    view: HistoryView,
    vacancy: Vacancy,
    n_devices: int,
    attempt: int,
) -> Candidate:
    """Return the candidate for a vacancy: parent and morphs by the search, hyperparameters by HPO once its
    rounds have begun. Pure.

    The random streams depend on the seed, the replica, the generator and the length of the history. A further
    `attempt` at the same history (another generator has claimed the candidate) goes on in the same streams.
    """
    seed, replica, generator = config.run.seed, vacancy.replica, vacancy.generator
    rng = stream(SEARCH, seed, replica, generator, view.length)
    proposal = propose(search, view, rng)
    for _ in range(attempt):
        proposal = propose(search, view, rng)

    round_number = vacancy.slot.ticket
    architecture, kernel = proposal.architecture, DEFAULT_KERNEL
    batch, tuned_by, expected = config.train.batch_per_device, "default", proposal.expected
    if config.hpo.enabled and round_number >= config.hpo.from_round:
        suggestion = hpo.suggest(view, proposal, stream(HPO, seed, replica, generator, view.length))
        architecture, kernel = tune(proposal, suggestion.choice, limits_of(config))
        batch, tuned_by = suggestion.choice.batch_per_device, suggestion.tuned_by
        expected = suggestion.expected or expected
    own = architecture.morphs[len(architecture.morphs) - len(proposal.morphs) :]
    return Candidate.new(
        architecture,
        own,
        parent_id=proposal.parent_id,
        replica=replica,
        generator=generator,
        round=round_number,
        batch_per_device=batch,
        devices=n_devices,
        seed=seed,
        kernel_size=kernel,
        from_checkpoint=config.model.inherits and view.keeps(proposal.parent_id),
        origin=Origin(proposal.chosen_by, tuned_by, expected),
    )


def propose(search: Search, view: HistoryView, rng: np.random.Generator) -> Proposal:
    """Return the search's proposal. If its parent has no weights to inherit, propose again from a view in
    which only trials that have weights are finished."""
    proposal = search.propose(view, rng)
    return proposal if view.may_be_parent(proposal.parent_id) else search.propose(view.of_parents(), rng)


def limits_of(config: Config) -> Limits:
    """Return how far architectures may grow."""
    return Limits(config.search.max_units, config.search.max_parameters)


def search_of(config: Config, memory: Memory | None = None) -> Search:
    """Return the search that the configuration names; `memory` keeps what it learns between proposals,
    its own if None."""
    search = config.search
    return make_search(
        search.method,
        ops=search.morphs,
        max_morphs=search.max_morphs,
        limits=limits_of(config),
        population=search.population,
        sample_size=search.sample_size,
        memory=memory,
    )


def hpo_of(config: Config, memory: Memory | None = None) -> Hpo:
    """Return the optimiser of hyperparameters; `memory` as in `search_of`."""
    hpo = config.hpo
    return make_hpo(
        hpo.method, kernels=hpo.kernels, batches=hpo.batches, from_round=hpo.from_round, memory=memory
    )
