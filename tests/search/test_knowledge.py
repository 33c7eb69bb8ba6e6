# SPDX-License-Identifier: Apache-2.0
"""What the search knows at a view: refits, the subset beyond 1,500 trials; memory changes no result."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture, Morph
from aiperf_mpi.network.morphism import random_chain
from aiperf_mpi.search.acquisition import Chain
from aiperf_mpi.search.features import features
from aiperf_mpi.search.knowledge import (
    LONGEST_STEP,
    MOST_ROWS,
    Knowledge,
    Memory,
    chosen,
    learn_from,
    refit_length,
)
from aiperf_mpi.search.nas import Bayesian
from aiperf_mpi.trials import record as rec
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView
from tests.helpers.search.landscape import SMALL, Landscape, run_search
from tests.helpers.trials.twins import ArrayHistory

INITIAL = Architecture(SMALL)


def log_of(finished: int, pending: int = 0, kept: tuple[int, ...] = (), seed: int = 0) -> ArrayHistory:
    """Return a log of trial 0 and children of it.

    All but the last `pending` have ended; the weights of the trials numbered `kept` are kept.
    """
    log, rng = ArrayHistory(2 * (finished + pending)), np.random.default_rng(seed)
    for index in range(finished + pending):
        architecture, own = random_chain(INITIAL, rng, int(rng.integers(1, 9))) if index else (INITIAL, ())
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
        if index < finished:
            error = 0.5 - 0.2 * np.tanh(len(own) / 4) + 0.02 * rng.normal()
            log.append(candidate.outcome(rec.DONE, 1.0, epochs=1, best_error=error, kept=index in kept))
    log.refresh()
    return log


def hashes(known: Knowledge) -> set[str]:
    return {chain.architecture.hash for chain in (*known.finished, *known.pending)}


def test_refits_are_an_eighth_apart_and_at_most_128() -> None:
    lengths = sorted({refit_length(finished, 8) for finished in range(8, 5000)})
    assert lengths[:12] == [8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22]
    steps = np.diff(lengths)
    assert (
        steps <= np.clip(np.array(lengths[:-1]) // 8, 1, LONGEST_STEP)
    ).all() and steps.max() == LONGEST_STEP
    assert all(
        refit_length(finished, 8) <= finished < refit_length(finished, 8) + LONGEST_STEP
        for finished in range(8, 5000)
    )
    # The refit length of a refit length is itself.
    assert all(refit_length(a, 8) == a for a in lengths)


class Values:
    """A view with values and ids only."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.finished = values.astype(np.float32), 2 * np.arange(len(values))


def test_beyond_1500_best_youngest_and_random_trials_are_chosen() -> None:
    values = np.random.default_rng(0).permutation(4000) / 4000
    places = chosen(Values(values), 4000)  # type: ignore[arg-type]
    assert len(places) == MOST_ROWS == 1500 and (np.diff(places) > 0).all()
    taken = set(places.tolist())
    assert set(range(3500, 4000)) <= taken and set(np.argsort(values)[:500].tolist()) <= taken
    # The others are 500 of 3,000 and more, from everywhere: 250 are expected in each half, standard deviation
    # 11.
    rest = taken - set(range(3500, 4000)) - set(np.argsort(values)[:500].tolist())
    assert abs(sum(place < 1750 for place in rest) - len(rest) / 2) < 50
    # As the history grows, most of the chosen trials stay; only then are kept features useful.
    later = set(chosen(Values(np.append(values, np.ones(128))), 4128).tolist())  # type: ignore[arg-type]
    assert len(taken & later) > 1300
    assert np.array_equal(chosen(Values(values[:1500]), 1500), np.arange(1500))  # type: ignore[arg-type]


def test_a_kept_memory_changes_no_result() -> None:
    # One memory for all lengths of a growing history gives the same bits as a new one for each length.
    log, memory, cache = log_of(60, pending=5), Memory(), ArchitectureCache()
    asked = [INITIAL.apply(*random_chain(INITIAL, np.random.default_rng(i), 3)[1]) for i in range(5)]
    rows = [features(architecture) for architecture in asked]
    for rows_seen in range(20, len(log) + 1, 7):
        kept = learn_from(HistoryView(log.summaries()[:rows_seen], log.record, INITIAL, cache), 8, memory)
        fresh = learn_from(HistoryView(log.summaries()[:rows_seen], log.record, INITIAL), 8, Memory())
        for a, b in zip(kept.process.predict(rows), fresh.process.predict(rows), strict=True):
            assert np.array_equal(a, b)
        assert [c.parent_id for c in kept.finished] == [c.parent_id for c in fresh.finished]
    assert [c.parent_id for c in kept.pending] == HistoryView.of(log, INITIAL).pending.tolist()
    assert len(kept.pending) == 5


def test_a_memory_is_valid_for_one_history_only() -> None:
    # The logs have the same ids, but other architectures and values.
    memory = Memory()
    for seed in (0, 1, 0):
        log = log_of(20, seed=seed)
        known = learn_from(HistoryView.of(log, INITIAL), 8, memory)
        fresh = learn_from(HistoryView.of(log, INITIAL), 8, Memory())
        assert hashes(known) == hashes(fresh)
        assert np.array_equal(known.process.expected(), fresh.process.expected())


def test_a_network_is_known_whatever_morphs_lead_to_it() -> None:
    # Unit 1 is 1x1 and unit 2 is 3x3 with as many filters: another 3x3 after either gives the same network.
    twins = [INITIAL.apply(Morph("deeper", unit, 0, 3)) for unit in (1, 2)]
    other = INITIAL.apply(Morph("deeper", 3, 0, 3))
    assert twins[0].hash == twins[1].hash and features(twins[0]).key != features(twins[1]).key
    first, second, third = (Chain(0, (), a, features(a)) for a in (*twins, other))
    for known in (Knowledge(None, [first], [], np.arange(1)), Knowledge(None, [], [first], np.arange(0))):  # type: ignore[arg-type]
        assert known.holds(first) and known.holds(second) and not known.holds(third)


@pytest.mark.slow
def test_a_small_memory_forgets_and_still_knows() -> None:
    log = log_of(40)
    small = learn_from(HistoryView.of(log, INITIAL), 8, Memory(capacity=3))
    assert hashes(small) == hashes(learn_from(HistoryView.of(log, INITIAL), 8, Memory()))


def test_only_trials_with_kept_weights_are_parents() -> None:
    # Ids are slots. Each proposal is followed by its outcome, so the trials are 0, 2, 4, ... The weights of
    # two are kept.
    view = HistoryView.of(log_of(30, kept=(3, 7)), INITIAL, inherit=True)
    eligible = {0, 6, 14}
    assert set(view.parents.tolist()) == eligible
    search = Bayesian()
    drawn = {search.propose(view, np.random.default_rng(seed)).parent_id for seed in range(12)}
    assert drawn <= eligible
    free = HistoryView.of(log_of(30, kept=(3, 7)), INITIAL)
    assert not {search.propose(free, np.random.default_rng(seed)).parent_id for seed in range(12)} <= eligible
    # The surrogate still learns from all trials.
    assert len(learn_from(view, 8, Memory()).finished) == 30


@pytest.mark.slow
@pytest.mark.parametrize("kept", [(), (5,)])
def test_children_are_proposed_without_an_eligible_parent(
    kept: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = HistoryView.of(log_of(30, kept=kept), INITIAL, inherit=True)
    monkeypatch.setattr(HistoryView, "may_be_parent", lambda self, trial_id: False)
    assert learn_from(view, 8, Memory()).eligible.tolist() == []
    assert Bayesian().propose(view, np.random.default_rng(0)).parent_id in {0, *(2 * place for place in kept)}


def test_removing_an_observation_changes_the_next_proposal() -> None:
    # Take back one outcome of a run of 40 evaluations, so that its trial is pending again: the proposal
    # changes.
    outcome = run_search(Bayesian(), Landscape(1, runs=4), 1, 40)
    log = outcome.log
    assert log is not None
    log.refresh()
    whole = log.summaries().copy()
    ends = np.flatnonzero(whole["kind"] == rec.OUTCOME)
    changed = 0
    for end in ends[-4:]:
        less = whole.copy()
        less["kind"][end] = rec.ABANDONED
        before, after = (
            Bayesian().propose(HistoryView(rows, log.record, INITIAL), np.random.default_rng(3))
            for rows in (whole, less)
        )
        changed += before != after
    assert changed == 4
