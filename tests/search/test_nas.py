# SPDX-License-Identifier: Apache-2.0
"""The searches: which trials are parents, repeatability, and that two of them learn where random search does
not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aiperf_mpi.network.architecture import OPS, Architecture, Morph
from aiperf_mpi.network.morphism import Limits
from aiperf_mpi.search.features import features
from aiperf_mpi.search.knowledge import Memory, learn_from
from aiperf_mpi.search.nas import SEARCHES, Evolution, NoProposal, Random, Space, chain_length, make_search
from aiperf_mpi.streams import SEARCH, stream
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.view import START, HistoryView
from tests.helpers.search.landscape import SMALL, Landscape, run_search
from tests.helpers.trials.twins import ArrayHistory

INITIAL = Architecture(SMALL)


def history(values: list[float], statuses: list[int] | None = None) -> HistoryView:
    """Return a view of trial 0 and one child per further value, ended in this order with these errors."""
    log = ArrayHistory(4 * len(values) + 4)
    for index, value in enumerate(values):
        own: tuple[Morph, ...] = ()
        architecture = INITIAL
        if index:
            rng = np.random.default_rng(index)
            proposal = Random(Space(max_morphs=2)).propose(HistoryView.of(log, INITIAL), rng)
            own, architecture = proposal.morphs, proposal.architecture
        candidate = Candidate.new(
            architecture,
            own,
            parent_id=0 if index else -1,
            replica=0,
            generator=0,
            round=1,
            batch_per_device=32,
            devices=1,
            seed=0,
        )
        candidate = dataclasses.replace(candidate, trial_id=log.append(candidate.to_record(0.0)))
        status = statuses[index] if statuses else rec.DONE
        log.append(candidate.outcome(status, 1.0, best_error=value))
    log.refresh()
    return HistoryView.of(log, INITIAL)


@pytest.mark.parametrize("method", SEARCHES)
def test_an_empty_history_gives_children_of_the_initial_architecture(method: str) -> None:
    log = ArrayHistory(4)
    proposal = make_search(method).propose(HistoryView.of(log, INITIAL), np.random.default_rng(0))
    assert proposal.parent_id == 0
    assert proposal.architecture == INITIAL.apply(*proposal.morphs) != INITIAL


@pytest.mark.parametrize("method", SEARCHES)
def test_a_proposal_is_a_child_within_the_space(method: str) -> None:
    view = history([0.5, 0.4, 0.3, 0.2])
    limits = Limits(units=55, parameters=3 * INITIAL.parameters)
    search = make_search(method, ops=("deeper", "wider"), max_morphs=3, limits=limits)
    for seed in range(40):
        proposal = search.propose(view, np.random.default_rng(seed))
        assert proposal.architecture == view.architecture(proposal.parent_id).apply(*proposal.morphs)
        assert 1 <= len(proposal.morphs) <= 3
        assert {morph.op for morph in proposal.morphs} <= {"deeper", "wider"}
        assert limits.allow(proposal.architecture)


@pytest.mark.parametrize("method", SEARCHES)
def test_same_seed_history_and_generator_same_proposal(method: str) -> None:
    view, search = history([0.5, 0.4, 0.3, 0.2]), make_search(method)
    place = (SEARCH, 2021, 1, 0, view.length)
    assert search.propose(view, stream(*place)) == search.propose(view, stream(*place))
    others = [search.propose(view, stream(SEARCH, 2021, 1, generator, view.length)) for generator in range(8)]
    assert len({proposal.architecture.hash for proposal in others}) > 4
    # A second call with the same stream, as after a lost claim, proposes another child.
    rng = stream(*place)
    assert search.propose(view, rng) != search.propose(view, rng)


@pytest.mark.parametrize("method", SEARCHES)
def test_only_trials_that_ended_well_are_parents(method: str) -> None:
    view = history([0.5, 0.01, 0.01, 0.4], [rec.DONE, rec.FAILED, rec.REJECTED, rec.STOPPED])
    search = make_search(method)
    parents = {search.propose(view, np.random.default_rng(seed)).parent_id for seed in range(60)}
    assert parents <= {int(view.finished[0]), int(view.finished[1])}
    assert parents >= {int(view.finished[1])}


@pytest.mark.parametrize(
    ("method", "finished", "chosen_by"),
    [
        ("random", 4, "random"),
        ("evolution", 4, "evolution"),
        ("bayesian", 2, "design"),
        ("bayesian", 3, "surrogate"),
    ],
)
def test_a_proposal_says_what_chose_it(method: str, finished: int, chosen_by: str) -> None:
    view = history([0.5, 0.4, 0.3, 0.2][:finished])
    proposal = make_search(method).propose(view, np.random.default_rng(0))
    assert proposal.chosen_by == chosen_by
    if chosen_by != "surrogate":
        assert proposal.expected is None
        return
    # The posterior mean, and its deviation with the noise of one trial; records hold float32.
    process = learn_from(view, START, Memory()).process
    mean, deviation = process.predict([features(proposal.architecture)])
    noise = process.units.scale**2 * process.hyper.noise
    assert proposal.expected is not None
    assert proposal.expected.error == pytest.approx(mean[0], rel=1e-6)
    assert proposal.expected.deviation == pytest.approx(np.sqrt(deviation[0] ** 2 + noise), rel=1e-6)


def test_evolution_takes_the_best_of_its_sample() -> None:
    view = history([0.5, 0.4, 0.3, 0.2, 0.6, 0.7])
    always_best = Evolution(population=6, sample_size=6)
    best = view.best
    assert best is not None
    assert {always_best.propose(view, np.random.default_rng(s)).parent_id for s in range(20)} == {best[0]}


def test_evolution_forgets_the_old() -> None:
    # The best trial ended first. With a population of the 3 youngest it is never a parent; the best of those
    # is.
    view = history([0.01, 0.4, 0.3, 0.2, 0.6, 0.7])
    young = Evolution(population=3, sample_size=3)
    assert {young.propose(view, np.random.default_rng(s)).parent_id for s in range(20)} == {
        int(view.finished[3])
    }


def test_a_parent_at_its_limits_is_replaced_by_another() -> None:
    # The limits allow one unit beyond the initial 49; parents with more already exceed them.
    view = history([0.5, 0.4, 0.3])
    search = make_search("evolution", ops=("deeper",), limits=Limits(units=50), population=3, sample_size=3)
    for seed in range(10):
        proposal = search.propose(view, np.random.default_rng(seed))
        assert proposal.architecture.unit_count == 50
    with pytest.raises(NoProposal, match="raise search.max_units"):
        make_search("evolution", ops=("deeper",), limits=Limits(units=49)).propose(
            view, np.random.default_rng(0)
        )


def test_chains_are_short_but_reach_the_longest() -> None:
    # P(1) = 1/2, P(2) = 1/4, P(3 or more, clipped) = 1/4: of 4,000 draws 2,000, 1,000, 1,000, standard
    # deviation at most 32.
    rng = np.random.default_rng(0)
    lengths = [chain_length(rng, 3) for _ in range(4000)]
    assert np.abs(np.bincount(lengths, minlength=4) - [0, 2000, 1000, 1000]).max() < 130


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "bayes"}, "none of bayesian, evolution, random"),
        ({"method": "random", "ops": ()}, "no morph operation"),
        ({"method": "random", "ops": ("thinner",)}, "thinner"),
        ({"method": "random", "max_morphs": 9}, "from 1 to 8"),
        ({"method": "evolution", "population": 5, "sample_size": 6}, "population of 5"),
    ],
)
def test_an_impossible_search_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_search(**settings)


# -- learning --------------------------------------------------------------------------------------


@pytest.mark.full
def test_evolution_learns_and_random_search_does_not() -> None:
    # 16 landscapes and seeds, 80 evaluations by 8 asynchronous workers, noise 0.3 of the landscape's own
    # spread. If both were equally good, 14 or more wins would have probability (120 + 16 + 1) / 2**16 = 0.2
    # %.
    best = {
        method: [max(run_search(make_search(method), Landscape(seed), seed, 80).scores) for seed in range(16)]
        for method in ("evolution", "random")
    }
    wins = sum(e > r for e, r in zip(best["evolution"], best["random"], strict=True))
    assert wins >= 14, best


@pytest.mark.slow
@pytest.mark.full
def test_bayesian_search_learns_more_than_random_search() -> None:
    # A sample of the study in benchmarks/search_learning.py: 8 landscapes and seeds, 40 evaluations each. The
    # first 10 are random (8 before any has ended, 3 until the surrogate is used). If both were equally good,
    # 8 wins of 8 would have probability 1 / 256.
    best = {
        method: [max(run_search(make_search(method), Landscape(seed), seed, 40).scores) for seed in range(8)]
        for method in ("bayesian", "random")
    }
    assert all(b > r for b, r in zip(best["bayesian"], best["random"], strict=True)), best


def test_a_simulated_run_makes_a_tree_without_duplicates() -> None:
    outcome = run_search(make_search("evolution"), Landscape(1), 3, 60)
    assert outcome.log is not None
    outcome.log.refresh()
    view = HistoryView.of(outcome.log, INITIAL)
    hashes = [view.architecture(int(trial)).hash for trial in view.proposed]
    assert len(set(hashes)) == len(hashes)
    parents = view.summaries["parent"][view.proposed]
    assert parents[0] == -1 and (parents[1:] >= 0).all() and (parents[1:] < view.proposed[1:]).all()
    assert {view.status(int(p)) for p in parents[1:]} <= {rec.DONE, rec.NONE}
    assert set(OPS) == {
        morph.op for trial in view.proposed for morph in view.candidate(int(trial)).own_morphs
    }


def test_a_simulated_run_repeats() -> None:
    first, second = (run_search(make_search("evolution"), Landscape(2), 5, 40) for _ in range(2))
    assert first.scores == second.scores and first.trials == second.trials
